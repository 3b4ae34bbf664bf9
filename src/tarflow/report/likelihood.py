"""The sections on held-out images: how likely they are, the most and the least likely, and which patches make it so."""

from __future__ import annotations

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.evaluate import Likelihood
from tarflow.evaluation.likelihood.gaussian import NoYardstick
from tarflow.evaluation.likelihood.patch_maps import ends_of_a_map, heat_map
from tarflow.measure import to_8bit
from tarflow.report.parts import Figure, Parts, Strip, Table
from tarflow.report.subject import DRAWS, Subject, Unavailable
from tarflow.report.words import quoted

LABELS = {
    "given": "its own label given, log p(x|y)",
    "null": "the null class, log p(x|∅)",
    "marginal": "no label, log of the mean of p(x|y) over all classes",
    "none": "no classes, log p(x)",
}


def likelihood(subject: Subject) -> Parts:
    """Held-out bits/dim by its measure, beside the yardstick."""
    results, held_out = subject.likelihoods, subject.splits.held_out
    first, how = results[0], results[0].scoring
    unit, names = unit_of(how.measure.figure), [f"this model, {LABELS[r.scoring.policy]}" for r in results]
    rows = [[name, quoted(r.mean, r.standard_error), advantage(r)] for name, r in zip(names, results, strict=True)]
    if first.yardstick:
        rows.append(["Gaussian yardstick", quoted(first.yardstick.mean, first.yardstick.standard_error), "—"])
    head = ["scored by", f"{unit} ± standard error", "beside the Gaussian"]
    text = (
        f"Lower is better. Mean over {first.images:,} held-out images and {how.draws} draws of the noise each (seed "
        f"{how.seed}); the errors are over images, and of the difference image by image."
    )
    if len(held_out) > first.images:
        text += f" They are a choice by that seed of the {len(held_out):,} held-out images."
    if wrong := max(r.not_finite for r in results):
        text += f" {wrong} images have a log-density that is not finite."
    note, is_none = subject.yardstick.note, isinstance(subject.yardstick, NoYardstick)
    parts: Parts = [
        Table(f"Held-out {unit}: {how.measure}", head, rows, numbers=True),
        text,
        f"{note[0].upper()}{note[1:]}." if is_none else f"The yardstick: {note}.",
    ]
    if not how.measure.kind.bounds_pixels:
        parts.append(
            "This is the density of images with noise added. It is no number of bits for the data, and not comparable "
            "with bits/dim of a model that was trained with uniform noise."
        )
    return parts


def advantage(result: Likelihood) -> str:
    """How much the model is better or worse than the yardstick, where there is one."""
    found = result.yardstick
    if found is None:
        return "—"
    word = "better" if found.advantage >= 0 else "worse"
    return f"{quoted(abs(found.advantage), found.advantage_standard_error)} {word}"


def unit_of(figure: str) -> str:
    """The unit of a figure, as it is written in metrics.jsonl: of bits_per_dim that of the data."""
    return "noisy bits/dim" if "noisy" in figure else "bits/dim"


def extremes(subject: Subject) -> Parts:
    """The most and the least likely held-out images."""
    most, least = _ends(subject, subject.settings.images)
    measure, labels = subject.run.measure, LABELS[subject.class_scores.scoring.policy]
    bits = measure.bits_per_dim(subject.scores, subject.run.config.model.num_dims)
    strips = [
        Strip(label, _images(subject, chosen), f"The {len(chosen)} {label} held-out images.")
        for label, chosen in (("most likely", most), ("least likely", least))
    ]
    low, high = bits[most], bits[least]
    caption = (
        f"Of {len(bits):,} held-out images the {len(most)} most likely, {low.min():.2f} to {low.max():.2f} "
        f"{unit_of(measure.figure)}, and the {len(least)} least likely, {high.min():.2f} to {high.max():.2f}, the most "
        f"extreme on the left (median {bits.median():.2f}; scored with {labels}; {DRAWS} draws, "
        f"seed {subject.settings.seed})."
    )
    return [Figure("extremes", strips, caption)]


def maps(subject: Subject) -> Parts:
    """Heat maps of the log-likelihood over the patches."""
    most, least = _ends(subject, max(1, subject.settings.images // 2))
    chosen = torch.cat([most, least])
    images = _images(subject, chosen)
    assert subject.class_scores.maps is not None
    patches = subject.class_scores.maps[chosen]
    finite = patches[patches.isfinite()]
    if not len(finite):
        raise Unavailable("No patch of these images has a finite log-likelihood.")
    centre = float(finite.median())
    # One scale for all of them. A few patches far out would leave the others white: nine in ten decide.
    span = float((finite - centre).abs().quantile(0.9)) or 1.0
    coloured = [heat_map(p, image, centre=centre, span=span) for p, image in zip(patches, images, strict=True)]
    strips = [
        Strip("image", images, f"{len(most)} of the most and {len(least)} of the least likely held-out images."),
        Strip(
            "map",
            torch.stack(coloured),
            "The same images under a colour for each patch: blue is likely, red unlikely.",
        ),
    ]
    caption = (
        f"The {len(most)} most likely and, to their right, the {len(least)} least likely held-out images, and what "
        f"each patch adds to the log-likelihood: white {centre:.1f} nats, blue {span:.1f} nats or more above that, red "
        f"{span:.1f} or more below. A map adds up to log p of its image."
    )
    if lost := patches.numel() - len(finite):
        caption += f" {lost} of {patches.numel()} patches are no finite numbers, and shown as the least likely."
    return [Figure("maps", strips, caption), ends_of_a_map(subject.run.flow)]


def _ends(subject: Subject, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the most and the least likely images, the most extreme first; no image is in both."""
    if len(subject.scores) < 2:
        raise Unavailable("Only one image is held out: there is no most and least likely one.")
    order = subject.scores.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    count = min(count, len(order) // 2)
    return order[:count], order.flip(0)[:count]


def _images(subject: Subject, chosen: Tensor) -> Tensor:
    return to_8bit(subject.held_out.images[chosen], subject.run.levels)
