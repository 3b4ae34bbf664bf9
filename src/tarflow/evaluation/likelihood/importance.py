"""How close the likelihood of dequantised pixels comes to that of the pixels: an importance-weighted bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tarflow.evaluation.likelihood.evaluate import mean_and_error
from tarflow.evaluation.likelihood.scores import ClassScores
from tarflow.jsontext import finite

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
