"""How far apart are two sets of features? Fréchet distance and kernel distance, in float64, from features alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.seeding import seeded_permutation

CHUNK_ROWS = 8192  # features that are in float64 at once
SUBSETS = 100  # of the kernel distance, as Bińkowski et al. take
SUBSET_SIZE = 500  # at most; the estimate is unbiased at any size, its cost grows with the square


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, all that the Fréchet distance looks at.

    Attributes:
        count: N, of how many features.
        mean: (d,) float64.
        factor: F (d, r) float64 with covariance F Fᵀ, normalised by N-1; of rank r ≤ min(N, d). The square root of a
            product of covariances needs no more, and a covariance of fewer images than features has no other that is
            exact.
    """

    count: int
    mean: Tensor
    factor: Tensor

    @property
    def trace(self) -> float:
        """Σ of the variances."""
        return float(self.factor.square().sum())


def moments(features: Tensor) -> Moments:
    """Mean and covariance of features (N, d), N ≥ 2. Raises ValueError where there are too few, or any is not finite.

    >>> found = moments(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    >>> found.mean.tolist(), (found.factor @ found.factor.T).tolist()
    ([1.0, 0.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    check_features("features", features, least=2)
    count, dims = features.shape
    mean = torch.stack([part.double().sum(dim=0) for part in features.split(CHUNK_ROWS)]).sum(dim=0) / count
    assert isinstance(mean, Tensor)
    if count <= dims:
        return Moments(count, mean, ((features.double() - mean) / math.sqrt(count - 1)).T)
    covariance = torch.zeros(dims, dims, dtype=torch.float64, device=features.device)
    for part in features.split(CHUNK_ROWS):
        centred = part.double() - mean
        covariance += centred.T @ centred
    return Moments(count, mean, covariance_factor(covariance / (count - 1)))


def covariance_factor(covariance: Tensor) -> Tensor:
    """F (d, r) with F Fᵀ the given covariance (d, d) float64; what rounding made negative or next to nothing is 0."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    kept = values > floor
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance(first: Moments, second: Moments) -> float:
    """Squared 2-Wasserstein distance of two Gaussians with these moments (Fréchet 1957; Heusel et al. 2017, as "FID").

        ‖μ₁ - μ₂‖² + Tr(Σ₁) + Tr(Σ₂) - 2 Tr((Σ₁Σ₂)^½)

    With Σ = F Fᵀ the last trace is the sum of the singular values of F₁ᵀF₂, which needs no square root of a matrix that
    may be singular, and no small number added to its diagonal.

    Raises ValueError where the dimensions differ.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"expected features of one length, got {len(first.mean)} and {len(second.mean)}")
    cross = float(torch.linalg.svdvals(first.factor.T @ second.factor).sum())
    distance = float((first.mean - second.mean).square().sum()) + first.trace + second.trace - 2 * cross
    return max(0.0, distance)  # rounding may leave less than nothing


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance with what is needed to judge it: its standard error, and how many subsets of which size."""

    value: float
    standard_error: float
    subsets: int
    size: int


def kernel_distance(
    x: Tensor, y: Tensor, *, subsets: int = SUBSETS, size: int | None = None, seed: int = 0
) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy with a cubic kernel (Bińkowski et al. 2018, as "KID").

        k(a, b) = (aᵀb/d + 1)³
        MMD² = mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j)

    Its mean over subsets of `size` of each; it may be negative, and its expectation is 0 where both come from one
    distribution, at any N. The subsets overlap, so their spread s is not divided by √subsets: the standard error is the
    delete-d jackknife's (Shao & Wu 1989), s √(size/(n - size)) with n the smaller of the two counts, and generous where
    both distributions are nearly the same.

    Args:
        x, y: (N, d) and (M, d). subsets: how many, at least 2. seed: decides which.
        size: at most n/2; None is that, or SUBSET_SIZE if it is less.

    Raises:
        ValueError: fewer than four of either, features that are not finite or of two lengths, a size that does not fit.
    """
    check_features("x", x, least=4)
    check_features("y", y, least=4)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"expected features of one length, got {x.shape[1]} and {y.shape[1]}")
    n = min(len(x), len(y))
    size = min(SUBSET_SIZE, n // 2) if size is None else size
    if not 2 <= size <= n // 2:
        raise ValueError(f"size: expected 2 to {n // 2}, half of the smaller set, got {size}")
    subsets = integer("subsets", subsets, 2)
    found = torch.empty(subsets, device="cpu", dtype=torch.float64)
    for number in range(subsets):
        parts = []
        for name, features in (("x", x), ("y", y)):
            chosen = seeded_permutation(len(features), f"kernel distance, {name}", seed, number)[:size]
            parts.append(features[chosen.to(features.device)].double())
        found[number] = squared_discrepancy(*parts)
    error = float(found.std()) * math.sqrt(size / (n - size))
    return KernelDistance(float(found.mean()), error, subsets, size)


def squared_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased MMD² of x (m, d) and y (n, d) with the cubic kernel, a scalar in their precision."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def among(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.diagonal().sum()) / (len(a) * (len(a) - 1))

    return among(x) + among(y) - 2 * kernel(x, y).mean()


def check_features(name: str, features: Tensor, *, least: int) -> None:
    """Raise ValueError unless `features` are (N, d), floating and finite, N at least `least`."""
    if features.ndim != 2 or not features.is_floating_point() or len(features) < least:
        got = f"{tuple(features.shape)} {features.dtype}"
        raise ValueError(f"{name}: expected at least {least} features, (N, d) floating, got {got}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"{name}: expected finite features")
