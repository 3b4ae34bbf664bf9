"""Bits per dimension of a data set: with its standard error, under a named label policy, in a named measure.

And a closer bound on the bits of its pixels, and the same taken apart by class, by patch and by precision.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, NoYardstick
from tarflow.evaluation.likelihood.scores import ClassScores, Progress, class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.jsontext import finite
from tarflow.model.condition import Value
from tarflow.model.flow import TarFlow
from tarflow.ranks import ALONE, Ranks


@dataclass(frozen=True)
class YardstickScore:
    """The Gaussian's figure on the same noisy images, and how much the model is better, pair by pair.

    Attributes:
        mean: of -log2 density a dimension, in the unit of `Likelihood.mean`. standard_error: over images.
        advantage: mean of yardstick - model, bits a dimension; positive where the model is better.
        advantage_standard_error: over images, of the differences, which is far below that of either figure.
    """

    mean: float
    standard_error: float
    advantage: float
    advantage_standard_error: float


@dataclass(frozen=True)
class Likelihood:
    """A likelihood with all that is needed to quote it.

    Attributes:
        scoring: under what it was computed: the measure, the draws and the seed of the noise, the labels.
        images: what was averaged over.
        mean: over images, of -log2 density a dimension, in a measure in which neighbouring levels are 1 apart.
        nats_per_dim: -log p / (T·D) of x as the model sees it, pixels from -1 to 1.
        standard_error: of `mean`, over images: the sampling unit is the image, its value the mean over its draws. The
            noise of the draws is within it, for it adds to the scatter of the images' values. NaN for one image.
        noise_standard_error: of `mean`, from the noise alone: what more draws on the same images would bring down. NaN
            for one draw.
        not_finite: images with a log-density that is not a finite number in some draw. They are not left out of the
            means, which are then not finite either.
        yardstick: None where there is none. yardstick_note: what it is, or why there is none.
        scores: log p of every draw of every image, (draws, N), nats, float64.
    """

    scoring: Scoring
    images: int
    mean: float
    nats_per_dim: float
    standard_error: float
    noise_standard_error: float
    not_finite: int
    yardstick: YardstickScore | None
    yardstick_note: str
    scores: Tensor = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """What `tarflow evaluate` prints: a dictionary that JSON can hold. A number that is not finite is null."""
        scoring, yardstick = self.scoring, self.yardstick
        values = {
            "measure": str(scoring.measure),
            "bits_per_dim": None,
            "noisy_bits_per_dim": None,
            scoring.measure.figure: self.mean,
            "nats_per_dim": self.nats_per_dim,
            "standard_error": self.standard_error,
            "noise_standard_error": self.noise_standard_error,
            "labels": scoring.policy,
            "images": self.images,
            "draws": scoring.draws,
            "seed": scoring.seed,
            "not_finite": self.not_finite,
            "gaussian_yardstick": yardstick.mean if yardstick else None,
            "gaussian_yardstick_standard_error": yardstick.standard_error if yardstick else None,
            "gaussian_yardstick_note": self.yardstick_note,
            "advantage": yardstick.advantage if yardstick else None,
            "advantage_standard_error": yardstick.advantage_standard_error if yardstick else None,
        }
        return finite(values)


def evaluate_likelihood(
    flow: TarFlow,
    images: Tensor,
    labels: Value = None,
    *,
    scoring: Scoring,
    yardstick: GaussianYardstick | NoYardstick | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Likelihood:
    """Score a data set under the noise that the model was trained with: `summary` of its `class_scores`.

    Arguments and errors are theirs; `yardstick` is from `fit_yardstick`, in the same measure.
    """
    fitted = fitted_yardstick(yardstick, scoring)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "ranks": ranks}
    return summary(class_scores(flow, images, labels, scoring=scoring, yardstick=fitted, **options), yardstick)


def fitted_yardstick(yardstick: GaussianYardstick | NoYardstick | None, scoring: Scoring) -> GaussianYardstick | None:
    """The yardstick, if there is one. Raises ValueError where it was fitted in another measure."""
    if not isinstance(yardstick, GaussianYardstick):
        return None
    if yardstick.measure != scoring.measure:
        raise ValueError(f"yardstick: expected one fitted in {scoring.measure!r}, got {yardstick.measure!r}")
    return yardstick


def summary(found: ClassScores, yardstick: GaussianYardstick | NoYardstick | None = None) -> Likelihood:
    """Means and their errors of scores under their policy, beside the yardstick that scored the same noisy images.

        uniform     bits_per_dim       = -log p(2(k+u)/L - 1) / (T·D·ln 2) + log2(L/2)
        gaussian    noisy_bits_per_dim = -log p(2k/(L-1) - 1 + σε) / (T·D·ln 2) + log2((L-1)/2)

    The first bounds the bits that the model needs for the pixels from above. The second is the density of a noisy
    image; no number of bits for the data follows from it. Each constant is the log2 of levels per unit of x, so both
    are in the same measure, in which neighbouring levels are 1 apart.

    The yardstick uses no labels: "given" tells the model up to log2(K) bits an image more than it, "marginal" does not.
    """
    scores, bits = found.scores, found.bits  # (draws, N)
    model, compared = bits.mean(dim=0), None
    if found.yardstick is not None:
        gaussian = found.scoring.measure.bits_per_dim(found.yardstick, found.dims).mean(dim=0)
        compared = YardstickScore(*mean_and_error(gaussian), *mean_and_error(gaussian - model))
    mean, error = mean_and_error(model)
    return Likelihood(
        scoring=found.scoring,
        images=len(model),
        mean=mean,
        nats_per_dim=-float(scores.mean()) / found.dims,
        standard_error=error,
        noise_standard_error=noise_standard_error(bits),
        not_finite=int((~bits.isfinite()).any(dim=0).sum()),
        yardstick=compared,
        yardstick_note=yardstick.note if yardstick else "no Gaussian yardstick was asked for",
        scores=scores,
    )


def noise_standard_error(values: Tensor) -> float:
    """Standard error of the mean of values (draws, N) that comes from the draws alone: √(mean_k var_k / (draws·N))."""
    draws, count = values.shape
    if draws < 2 or count < 1:
        return math.nan
    return math.sqrt(float(values.var(dim=0).mean()) / (draws * count))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of one value an image, and its standard error std/√N."""
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), error


IMPORTANCE_KEYS = ("importance_bits_per_dim", "importance_standard_error", "importance_curve")


@dataclass(frozen=True)
class ImportanceBound:
    """A tighter bound on the bits of the pixels, from the draws that were scored anyway.

        log P(k) = log E_u p(2(k+u)/L - 1) + T·D log(2/L)  ≥  E log 1/K Σ_i p(2(k+u_i)/L - 1) + T·D log(2/L)

    With K = 1 that is the usual bound; it rises with K (the bits fall) and becomes log P(k) as K grows. Its own noise:
    an estimate from a few heavy draws, so that a large K is worth more than a small error bar.

    Attributes:
        mean: bits a dimension at K = `draws`, over images. standard_error: of it, over images.
        curve: bits by K = 1, 2, 4, …, each the mean over groups of K draws among the same draws, so that it never
            rises; the last one is no larger than K = `draws`.

    Source: Burda et al., arXiv 1509.00519, with uniform dequantisation as the proposal (Ho et al., arXiv 1902.00275).
    """

    draws: int
    mean: float
    standard_error: float
    curve: dict[int, float]

    def to_dict(self) -> dict[str, Any]:
        """As `tarflow evaluate` prints it. A number that is not finite is null."""
        curve = {str(k): v for k, v in self.curve.items()}
        return finite(dict(zip(IMPORTANCE_KEYS, (self.mean, self.standard_error, curve), strict=True)))


def importance_bound(found: ClassScores) -> ImportanceBound | None:
    """The bound from the draws of an evaluation; None in a measure that bounds no pixels."""
    measure = found.scoring.measure
    if not measure.kind.bounds_pixels:
        return None
    scores = found.scores  # (draws, N)
    mean, error = mean_and_error(measure.bits_per_dim(log_mean(scores), found.dims))
    nested = 1 << (len(scores).bit_length() - 1)  # the largest power of two: groups within groups
    curve = {}
    for size in (1 << k for k in range(nested.bit_length())):
        groups = scores[:nested].unflatten(0, (nested // size, size))
        curve[size] = float(measure.bits_per_dim(log_mean(groups, dim=1), found.dims).mean())
    return ImportanceBound(len(scores), mean, error, curve)


def log_mean(scores: Tensor, dim: int = 0) -> Tensor:
    """log 1/K Σ exp of log-densities over their K draws, without overflow.

    >>> import torch
    >>> log_mean(torch.tensor([[0.0], [math.log(3)]])).exp()
    tensor([2.])
    """
    return scores.logsumexp(dim=dim) - math.log(scores.shape[dim])


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
    flow: TarFlow, found: ClassScores, images: Tensor, labels: Value = None, *, count: int
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
    labels = flow.conditions.rows(labels, slice(count))
    scores = class_scores(exact, images[:count], labels, scoring=found.scoring).scores
    difference = (scores - found.scores[:, :count]) / (found.dims * math.log(2))
    return PrecisionDifference(count, float(difference.mean()), float(difference.abs().max()))
