"""A likelihood taken apart: by class, by patch, and by the precision it was computed in."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.evaluate import Likelihood, mean_and_error, to_bits_per_dim
from tarflow.evaluation.likelihood.patch_maps import mean_patch_maps
from tarflow.evaluation.likelihood.scores import LabelPolicy, Progress, default_batch_size, score_images
from tarflow.model.flow import TarFlow

UNLABELLED = "no label"


@dataclass(frozen=True)
class ClassScore:
    """The images of one class: bits a dimension in the measure of the evaluation, its standard error, how many."""

    mean: float
    standard_error: float
    images: int


def by_class(
    found: Likelihood, labels: Tensor, names: Sequence[str], *, levels: int, dims: int
) -> dict[str, ClassScore]:
    """The score of each class that has images, by its name, under the label policy of the evaluation.

    Args:
        labels: (N,) of the images that were scored; negative ones have none, and are a group of their own.
        names: of the classes, in the order of the labels. levels, dims: L and T·D of what was scored.

    Raises:
        ValueError: another number of labels than images, or a label without a name.
    """
    if len(labels) != found.scores.shape[1]:
        raise ValueError(f"labels: expected {found.scores.shape[1]}, one an image, got {len(labels)}")
    if int(labels.max()) >= len(names):
        raise ValueError(f"labels: expected less than {len(names)}, the number of names, got {int(labels.max())}")
    values = to_bits_per_dim(-found.scores / dims, levels, found.noise).mean(dim=0)  # (N,)
    result = {}
    for label in labels.unique().tolist():
        chosen = values[labels.cpu() == label]
        result[names[label] if label >= 0 else UNLABELLED] = ClassScore(*mean_and_error(chosen), len(chosen))
    return result


def by_patch(
    flow: TarFlow,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    levels: int,
    noise: str,
    noise_std: float = 0.0,
    draws: int = 4,
    seed: int = 0,
    batch_size: int | None = None,
    label_policy: LabelPolicy | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """What each place in the image contributes, bits a dimension, (rows, columns) float64: the mean over images of
    `patch_maps.mean_patch_maps`. Its mean over the patches is the score of `evaluate_likelihood` under the same
    arguments, whose noise is the same. Arguments and errors are those of `evaluate_likelihood`.
    """
    step = batch_size or default_batch_size(flow)
    total = torch.zeros(flow.config.grid, device="cpu", dtype=torch.float64)
    for start in range(0, len(images), step):
        rows = slice(start, min(start + step, len(images)))
        maps = mean_patch_maps(
            flow,
            images[rows],
            None if labels is None else labels[rows],
            levels=levels,
            noise=noise,
            noise_std=noise_std,
            draws=draws,
            seed=seed,
            indices=range(rows.start, rows.stop),
            batch_size=step,
            label_policy=label_policy,
        )
        total += maps.sum(dim=0)
        if progress:
            progress(rows.stop * draws, len(images) * draws)
    return to_bits_per_dim(-total / (len(images) * flow.config.patch_dim), levels, noise)


@dataclass(frozen=True)
class PrecisionDifference:
    """How far a score in the precision of the weights is from the same score in float64.

    Attributes:
        images: that were scored twice, in one and the same noise.
        mean: of the differences, bits a dimension; positive where float64 has fewer bits.
        largest: of their absolute values, over images and draws.
    """

    images: int
    mean: float
    largest: float

    def to_dict(self) -> dict[str, Any]:
        """As `tarflow evaluate` prints it. A number that is not finite is null."""
        values = (self.images, self.mean, self.largest)
        return {k: v if math.isfinite(v) else None for k, v in zip(PRECISION_KEYS, values, strict=True)}


PRECISION_KEYS = ("float64_images", "float64_difference", "float64_largest_difference")


def precision_difference(
    flow: TarFlow, found: Likelihood, images: Tensor, labels: Tensor | None = None, *, levels: int, count: int
) -> PrecisionDifference:
    """Score the first `count` images again with weights, state and density in float64, where it was less.

    The copy computes on the flow's own device, or on the CPU where that device (MPS) has no float64. The noise is that
    of the evaluation, float32 in both cases: it is the arithmetic that is compared.

    Args:
        found: the evaluation of `images`, of which these are the first.
    """
    count = min(count, len(images))
    device = "cpu" if flow.device.type == "mps" else flow.device
    exact = copy.deepcopy(flow).to(device).double()
    scores, _ = score_images(
        exact,
        images[:count],
        None if labels is None else labels[:count],
        levels=levels,
        noise=found.noise,
        noise_std=found.noise_std,
        draws=found.draws,
        seed=found.seed,
        label_policy=found.labels,
    )
    difference = (scores - found.scores[:, :count]) / (flow.config.num_dims * math.log(2))
    return PrecisionDifference(count, float(difference.mean()), float(difference.abs().max()))
