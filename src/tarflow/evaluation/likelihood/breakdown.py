"""A likelihood taken apart: by class, by patch, and by the precision it was computed in."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tarflow.evaluation.likelihood.evaluate import mean_and_error
from tarflow.evaluation.likelihood.scores import ClassScores, class_scores
from tarflow.jsontext import finite
from tarflow.model.flow import TarFlow

UNLABELLED = "no label"
PRECISION_KEYS = ("float64_images", "float64_difference", "float64_largest_difference")


@dataclass(frozen=True)
class ClassScore:
    """The images of one class: bits a dimension in the measure of the evaluation, its standard error, how many."""

    mean: float
    standard_error: float
    images: int


def by_class(found: ClassScores, labels: Tensor, names: Sequence[str]) -> dict[str, ClassScore]:
    """The score of each class that has images, by its name, under the label policy of the evaluation.

    Args:
        labels: (N,) of the images that were scored; negative ones have none, and are a group of their own.
        names: of the classes, in the order of the labels.

    Raises:
        ValueError: another number of labels than images, or a label without a name.
    """
    values = found.bits.mean(dim=0)  # (N,)
    if len(labels) != len(values):
        raise ValueError(f"labels: expected {len(values)}, one an image, got {len(labels)}")
    if int(labels.max()) >= len(names):
        raise ValueError(f"labels: expected less than {len(names)}, the number of names, got {int(labels.max())}")
    result = {}
    for label in labels.unique().tolist():
        chosen = values[labels.cpu() == label]
        result[names[label] if label >= 0 else UNLABELLED] = ClassScore(*mean_and_error(chosen), len(chosen))
    return result


def by_patch(found: ClassScores) -> Tensor:
    """What each place in the image contributes, bits a dimension, (rows, columns) float64: the mean over images of
    scores with `maps`. Its mean over the patches is the score of the evaluation."""
    assert found.maps is not None
    patches = found.maps.shape[1] * found.maps.shape[2]
    return found.scoring.measure.bits_per_dim(found.maps.mean(dim=0), found.dims // patches)


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
        return finite(dict(zip(PRECISION_KEYS, (self.images, self.mean, self.largest), strict=True)))


def precision_difference(
    flow: TarFlow, found: ClassScores, images: Tensor, labels: Tensor | None = None, *, count: int
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
    labels = None if labels is None else labels[:count]
    scores = class_scores(exact, images[:count], labels, scoring=found.scoring).scores
    difference = (scores - found.scores[:, :count]) / (found.dims * math.log(2))
    return PrecisionDifference(count, float(difference.mean()), float(difference.abs().max()))
