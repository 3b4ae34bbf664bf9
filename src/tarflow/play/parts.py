"""What the answers are made of: the macros of templates/parts.html, and what takes some arithmetic before."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup
from torch import Tensor

from tarflow.play.pictures import address
from tarflow.play.scoring import Histogram, Scores
from tarflow.report.parts import templates
from tarflow.sampling.inpaint import Inpainted

MANY = 100  # R-hat of chains that do not move is a number of 300 digits
PARTS: Any = templates("tarflow.play").get_template("parts.html").module


def histogram(known: Histogram, found: Scores, unit: str) -> Markup | str:
    """Held-out images by their bits a dimension, with a mark for each picture that was scored; nothing of no image."""
    if not known.images:
        return ""
    low, high, most = known.edges[0], known.edges[-1], max(known.counts)
    left, width, floor, height = 20, 400, 160, 128
    step = width / len(known.counts)
    bars = [
        {"x": f"{left + k * step:.1f}", "y": f"{floor - height * c / most:.1f}"}
        | {"width": f"{step - 1:.1f}", "height": f"{height * c / most:.1f}"}
        for k, c in enumerate(known.counts)
    ]
    marks, words = [], []
    for number, score in enumerate(found.scores, 1):
        if not math.isfinite(score.bits):
            continue
        share = min(max((score.bits - low) / (high - low), 0.0), 1.0)
        x = left + width * share
        anchor = "start" if share < 0.2 else "end" if share > 0.8 else "middle"
        beyond = "→" if score.bits > high else "←" if score.bits < low else ""
        which = f"{number}:" if len(found.scores) > 1 else "this picture:"
        text = f"{which} {score.bits:.2f}{beyond}" if len(found.scores) < 4 else str(number)
        marks.append({"x": f"{x:.1f}", "anchor": anchor, "label": text})
        words.append(f"picture {number} at {score.bits:.2f}")
    description = f"{known.images} held-out images from {low:.2f} to {high:.2f} {unit}; {', '.join(words)}."
    return PARTS.histogram(
        "score-histogram", bars, marks, f"{low:.2f}", f"{high:.2f}", f"{known.images:,}", unit, description
    )


def variations(images: Tensor, what: str, own: Tensor | None = None) -> str:
    """A grid of drawings, and in front of them the picture itself."""
    items = [
        {"src": address(image), "alt": "The picture itself", "caption": "the picture"}
        for image in ([] if own is None else own)
    ]
    items += [
        {"src": address(image), "alt": f"{what.capitalize()} {k}", "caption": f"{what} {k}"}
        for k, image in enumerate(images, 1)
    ]
    return str(PARTS.grid(items))


def worth(drawn: Inpainted) -> list[tuple[str, str]]:
    """The figures of drawings: empty where they are exact."""
    if drawn.exact:
        return []
    apart = float(drawn.rhat.amax())
    return [
        ("proposals that were taken", f"{100 * float(drawn.acceptance.mean()):.0f} %"),
        ("worth independent drawings", f"{float(drawn.effective_sample_size.amin()):.0f}"),
        ("R-hat, 1 where chains have met", f"{apart:.2f}" if apart < MANY else f"over {MANY}"),
    ]
