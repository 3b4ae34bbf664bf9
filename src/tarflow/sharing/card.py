"""The card of a model, `README.md` of its directory: made from what the run knows of itself, and nothing else.

Its first lines are facts for programs (`pretrained.card_text`), its figures are those that were measured of these very
weights, each with its measure. What nobody has measured is not there.
"""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import jinja2

from tarflow import __version__, digests, kept
from tarflow.checkpoint import CHECKPOINTS, read_metrics, read_names
from tarflow.data.readers.hub import PREFIX
from tarflow.drawing import class_count, usual_numbers
from tarflow.evaluation.quality.judge import Figure, kept_quality
from tarflow.pretrained import WEIGHTS_FILE, card_text
from tarflow.runs import Run

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
SHOWN_CLASSES = 20


def model_card(run: Run, name: str, licence: str, data: str, sheet: dict[str, Any] | None = None) -> str:
    """The card of a run that is to be called `name`, `owner/name`, on the hub.

    Args:
        licence: as the hub names it, such as "mit". data: what the images of the training are called.
        sheet: of the samples beside the card, its `file`, `count`, `seed`, and the numbers that they were `given`, in
            words; None where there is none.
    """
    config, facts = run.config.model, card_facts(run, licence, data)
    measured = list(facts.get("samples", {}).values())
    names, count = [" ".join(each.split()) for each in run.class_names[:SHOWN_CLASSES]], class_count(run)
    usual = dict(zip(run.numbers, [] if (mean := usual_numbers(run)) is None else mean[0].tolist(), strict=True))
    text = TEMPLATES.get_template("card.md").render(
        name=name,
        title=name.rpartition("/")[2],
        version=__version__,
        facts=facts,
        score=facts.get("held_out"),
        figures={name: Figure.from_dict(each) for entry in measured for name, each in entry["figures"].items()},
        agreements=[entry["agreement"] for entry in measured if entry.get("agreement") is not None],
        model=config,
        classes=f"{count} classes: {', '.join(names)}{', …' if count > SHOWN_CLASSES else ''}"
        if count
        else "no classes",
        options=f" --given {shlex.quote(','.join(f'{name}={value:.3g}' for name, value in usual.items()))}"
        if usual
        else "",
        given={name: float(f"{value:.3g}") for name, value in usual.items()},
        training=run.config.training,
        sigma=run.sigma,
        bounds=run.measure.kind.bounds_pixels,
        setting=run.setting,
        stored=kept.open_setting(run),
        sheet=sheet,
        weights_file=WEIGHTS_FILE,
    )
    return card_text(facts, text)


def card_facts(run: Run, licence: str, data: str) -> dict[str, Any]:
    """What a card says to programs. An entry that nothing is known of is left out."""
    named: dict[str, Any] = {"title": data}
    if (images := read_names(_root(run))) is not None:
        held_out = sum(images.values())
        named |= {"training_images": len(images) - held_out, "held_out_images": held_out}
    source = run.config.data.source if run.config.data else ""
    facts = {
        "license": licence,
        "library_name": "tarflow",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["normalizing-flow", "density-estimation"],
        "datasets": [source.removeprefix(PREFIX).partition("@")[0].partition(":")[0]] if PREFIX in source else None,
        "parameters": sum(parameter.numel() for parameter in run.flow.parameters()),
        "weights": digests.file_facts(run.path / WEIGHTS_FILE),
        "data": named,
        "held_out": held_out_score(run),
        "samples": kept_quality(run) or None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def held_out_score(run: Run) -> dict[str, Any] | None:
    """The score of held-out images that the training wrote down for these weights; None where it wrote none.

    Of a run that is the best one, whose weights it keeps, of a `step-N` that of its step. What the additive variant
    came to at its end, with the base variance of all images, goes before those on the way.
    """
    figure, metrics = run.measure.figure, read_metrics(_root(run))
    step = int(run.path.name.removeprefix("step-")) if _root(run) != run.path else None
    for name in (f"settled_{figure}", f"held_out_{figure}"):
        if step is not None and name.startswith("settled_"):
            continue
        lines = [entry for entry in metrics if step in (None, entry["step"])]
        if known := [entry for entry in lines if math.isfinite(entry.get(name, math.nan))]:
            best = min(known, key=lambda entry: entry[name])
            error = best.get("standard_error", math.nan)
            known_error = error if math.isfinite(error) else None
            return {"figure": figure, "value": best[name], "standard_error": known_error, "step": best["step"]}
    return None


def _root(run: Run) -> Path:
    """The directory of the run, of which `run` may be a `step-N`."""
    return run.path.parent.parent if run.path.parent.name == CHECKPOINTS else run.path
