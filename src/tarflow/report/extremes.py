"""The sections on single held-out images: the most and the least likely, and where their likelihood comes from."""

from __future__ import annotations

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.evaluate import to_bits_per_dim
from tarflow.evaluation.likelihood.patch_maps import ends_of_a_map, heat_map, mean_patch_maps
from tarflow.measure import to_8bit
from tarflow.report.content import Figure, Parts, Strip
from tarflow.report.facts import LABELS, unit_name
from tarflow.report.subject import DRAWS, Subject, Unavailable


def extremes(subject: Subject) -> Parts:
    """The most and the least likely held-out images."""
    most, least = _ends(subject, subject.settings.images)
    bits, unit = _bits(subject), _unit(subject)
    strips = []
    for label, chosen in (("most likely", most), ("least likely", least)):
        strips.append(Strip(label, _images(subject, chosen), f"The {len(chosen)} {label} held-out images."))
    policy = LABELS[subject.policies[0]]
    low, high, middle = bits[most], bits[least], bits.median()
    caption = (
        f"Of {len(bits):,} held-out images the {len(most)} most likely, {low.min():.2f} to {low.max():.2f} {unit}, and "
        f"the {len(least)} least likely, {high.min():.2f} to {high.max():.2f}, the most extreme on the left (median "
        f"{middle:.2f}; scored with {policy}; {DRAWS} draws, seed {subject.settings.seed})."
    )
    return [Figure("extremes", strips, caption)]


def maps(subject: Subject) -> Parts:
    """Heat maps of the log-likelihood over the patches."""
    most, least = _ends(subject, max(1, subject.settings.images // 2))
    chosen = torch.cat([most, least])
    images = _images(subject, chosen)
    patches = mean_patch_maps(
        subject.run.flow,
        subject.held_out.images[chosen],
        subject.held_out.labels[chosen]
        if subject.policies[0] == "given" and subject.held_out.labels is not None
        else None,
        levels=subject.run.levels,
        noise=subject.training.noise,
        noise_std=subject.training.noise_std,
        draws=DRAWS,
        seed=subject.settings.seed,
        indices=chosen.tolist(),
        label_policy=subject.policies[0],
    )
    finite = patches[patches.isfinite()]
    if not len(finite):
        raise Unavailable("No patch of these images has a finite log-likelihood.")
    centre = float(finite.median())
    # One scale for all of them. A few patches far out would leave the others white: nine in ten decide.
    span = float((finite - centre).abs().quantile(0.9)) or 1.0
    coloured = torch.stack(
        [heat_map(p, image, centre=centre, span=span) for p, image in zip(patches, images, strict=True)]
    )
    strips = [
        Strip("image", images, f"{len(most)} of the most and {len(least)} of the least likely held-out images."),
        Strip("map", coloured, "The same images under a colour for each patch: blue is likely, red unlikely."),
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


def _bits(subject: Subject) -> Tensor:
    per_dim = -subject.scores / subject.run.config.model.num_dims
    return to_bits_per_dim(per_dim, subject.run.levels, subject.training.noise)


def _unit(subject: Subject) -> str:
    return unit_name(subject.run.measure.figure)


def _images(subject: Subject, chosen: Tensor) -> Tensor:
    return to_8bit(subject.held_out.images[chosen], subject.run.levels)
