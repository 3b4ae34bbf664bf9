"""Bits per dimension of a data set: with its standard error, under a named label policy, in a named measure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, NoYardstick
from tarflow.evaluation.likelihood.scores import LabelPolicy, Progress, default_label_policy, score_shares
from tarflow.fields import integer
from tarflow.measure import Measure
from tarflow.model.flow import TarFlow
from tarflow.ranks import ALONE, Ranks

Number = TypeVar("Number", float, Tensor)


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
        measure: what the number is a number of.
        mean: over images, of -log2 density a dimension, in a measure in which neighbouring levels are 1 apart.
        nats_per_dim: -log p / (T·D) of x as the model sees it, pixels from -1 to 1.
        standard_error: of `mean`, over images: the sampling unit is the image, its value the mean over its draws. The
            noise of the draws is within it, for it adds to the scatter of the images' values. NaN for one image.
        noise_standard_error: of `mean`, from the noise alone: what more draws on the same images would bring down. NaN
            for one draw.
        labels: "given", "null", "marginal", or "none" for an unconditional model.
        images, draws, seed: what was averaged over, and the seed of the noise.
        not_finite: images with a log-density that is not a finite number in some draw. They are not left out of the
            means, which are then not finite either.
        yardstick: None where there is none. yardstick_note: what it is, or why there is none.
        scores: log p of every draw of every image, (draws, N), nats, float64.
    """

    measure: Measure
    noise: str
    noise_std: float
    mean: float
    nats_per_dim: float
    standard_error: float
    noise_standard_error: float
    labels: LabelPolicy
    images: int
    draws: int
    seed: int
    not_finite: int
    yardstick: YardstickScore | None
    yardstick_note: str
    scores: Tensor = field(repr=False, compare=False)

    @property
    def bits_per_dim(self) -> float | None:
        """Bits/dim of the data; None for a model of noisy images, which has no such number."""
        return self.mean if self.noise == "uniform" else None

    @property
    def noisy_bits_per_dim(self) -> float | None:
        """Bits/dim of the density of noisy images; None for a model of uniformly dequantised ones."""
        return None if self.noise == "uniform" else self.mean

    def to_dict(self) -> dict[str, Any]:
        """What `tarflow evaluate` prints: a dictionary that JSON can hold. A number that is not finite is null."""
        yardstick = self.yardstick
        values = {
            "measure": str(self.measure),
            "bits_per_dim": self.bits_per_dim,
            "noisy_bits_per_dim": self.noisy_bits_per_dim,
            "nats_per_dim": self.nats_per_dim,
            "standard_error": self.standard_error,
            "noise_standard_error": self.noise_standard_error,
            "labels": self.labels,
            "images": self.images,
            "draws": self.draws,
            "seed": self.seed,
            "not_finite": self.not_finite,
            "gaussian_yardstick": yardstick.mean if yardstick else None,
            "gaussian_yardstick_standard_error": yardstick.standard_error if yardstick else None,
            "gaussian_yardstick_note": self.yardstick_note,
            "advantage": yardstick.advantage if yardstick else None,
            "advantage_standard_error": yardstick.advantage_standard_error if yardstick else None,
        }
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def evaluate_likelihood(
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
    yardstick: GaussianYardstick | NoYardstick | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Likelihood:
    """Score a data set under the noise that the model was trained with.

        uniform     bits_per_dim       = -log p(2(k+u)/L - 1) / (T·D·ln 2) + log2(L/2)
        gaussian    noisy_bits_per_dim = -log p(2k/(L-1) - 1 + σε) / (T·D·ln 2) + log2((L-1)/2)

    The first bounds the bits that the model needs for the pixels from above. The second is the density of a noisy
    image; no number of bits for the data follows from it. Each constant is the log2 of levels per unit of x, so both
    are in the same measure, in which neighbouring levels are 1 apart.

    Args:
        flow: the model; it is left as it was found.
        images: (N, C, H, W) uint8. labels: (N,) integers, or None.
        draws: of the noise, for each image. The noise of image k is drawn on the CPU from (seed, draw, k).
        batch_size: images scored at once, which changes no more than the rounding; None takes what suits the size.
        label_policy: see `log_likelihood`; None is the policy of `default_label_policy`.
        yardstick: from `fit_yardstick`, with the same levels and noise; it scores the same noisy images. It uses no
            labels: "given" tells the model up to log2(K) bits an image more than the yardstick, "marginal" does not.
        ranks: processes that call this together with the same arguments: each scores its share of the images, and all
            get the result for all of them. `progress` is that of the share.

    Raises:
        ValueError: images, labels, noise or policy do not fit the model or each other.
    """
    seed = integer("seed", seed)  # it is written down with the result
    policy = label_policy or default_label_policy(flow, labels)
    measure = Measure(levels, noise, noise_std)
    if isinstance(yardstick, GaussianYardstick) and yardstick.measure != measure:
        raise ValueError(f"yardstick: expected one fitted in {measure!r}, got {yardstick.measure!r}")
    scores, gaussian_scores = score_shares(
        ranks,
        flow,
        images,
        labels,
        levels=levels,
        noise=noise,
        noise_std=noise_std,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        label_policy=policy,
        yardstick=yardstick if isinstance(yardstick, GaussianYardstick) else None,
        progress=progress,
    )
    dims = flow.config.num_dims
    bits = to_bits_per_dim(-scores / dims, levels, noise)  # (draws, N)
    model = bits.mean(dim=0)
    compared = None
    if gaussian_scores is not None:
        gaussian = to_bits_per_dim(-gaussian_scores / dims, levels, noise).mean(dim=0)
        compared = YardstickScore(*mean_and_error(gaussian), *mean_and_error(gaussian - model))
    mean, error = mean_and_error(model)
    return Likelihood(
        measure=measure,
        noise=noise,
        noise_std=noise_std,
        mean=mean,
        nats_per_dim=-float(scores.mean()) / dims,
        standard_error=error,
        noise_standard_error=noise_standard_error(bits),
        labels=policy,
        images=len(images),
        draws=draws,
        seed=seed,
        not_finite=int((~torch.isfinite(bits)).any(dim=0).sum()),
        yardstick=compared,
        yardstick_note=yardstick.note if yardstick else "no Gaussian yardstick was asked for",
        scores=scores,
    )


def to_bits_per_dim(nats_per_dim: Number, levels: int, noise: str) -> Number:
    """nats / ln 2 + log2 of the levels per unit of x: L/2 for uniform noise, (L-1)/2 for Gaussian.

    Args:
        nats_per_dim: -log p / (T·D) of x as the model sees it, with every constant of p; a number or a tensor.

    >>> to_bits_per_dim(-math.log(0.5), levels=256, noise="uniform")  # flat on -1 … 1
    8.0
    """
    return Measure(levels, noise, 1.0).bits_per_dim(-nats_per_dim, 1)


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
