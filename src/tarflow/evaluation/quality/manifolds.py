"""Do samples lie where real images do, and everywhere there? Precision, recall, density and coverage of features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.evaluation.quality.distances import check_features

PRECISION_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019
DENSITY_NEIGHBOURS = 5  # Naeem et al. 2020
CHUNK_BYTES = 1 << 26  # float64 distances that are held at once


@dataclass(frozen=True)
class Manifolds:
    """Four shares of neighbourhoods, and of how many features on either side.

    Attributes:
        precision: share of samples within the k nearest neighbours of some real image, k = 3.
        recall: share of real images within the k nearest neighbours of some sample.
        density: in how many real neighbourhoods of k = 5 a sample lies, over k; about 1 for real images, and not
            bounded by it.
        coverage: share of real images in whose neighbourhood a sample lies. Of two sets from one distribution it is
            1 - 2^-k in expectation, as good as 0.97, and not 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifolds(
    real: Tensor,
    samples: Tensor,
    *,
    precision_neighbours: int = PRECISION_NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
) -> Manifolds:
    """Compare features by the balls around each of them that reach its k-th nearest neighbour of the same set.

    With B_k(v) the closed ball around v whose radius is the distance to the k-th nearest other member of v's set,

        precision = mean_j 1[sample_j ∈ ∪_i B_3(real_i)]      recall   = mean_i 1[real_i ∈ ∪_j B_3(sample_j)]
        density   = 1/k mean_j Σ_i 1[sample_j ∈ B_5(real_i)]  coverage = mean_i 1[∃j: sample_j ∈ B_5(real_i)]

    (Kynkäänniemi et al. 2019, arXiv 1904.06991; Naeem et al. 2020, arXiv 2002.09797.) All four depend on the number of
    features, so that only those of equal numbers may be compared.

    Args:
        real, samples: (N, d) and (M, d), of the same or of different numbers, both more than either k.

    Raises:
        ValueError: too few features, not finite ones, or two lengths.
    """
    least = max(precision_neighbours, density_neighbours) + 1
    check_features("real", real, least=least)
    check_features("samples", samples, least=least)
    if real.shape[1] != samples.shape[1]:
        raise ValueError(f"expected features of one length, got {real.shape[1]} and {samples.shape[1]}")
    # Distances come from a matrix product, whose rounding grows with the norm: around the mean that is least.
    centre = real.double().mean(dim=0)
    real, samples = real.double() - centre, samples.double() - centre
    precise, dense = neighbour_distances(real, [precision_neighbours, density_neighbours])
    (own,) = neighbour_distances(samples, [precision_neighbours])
    inside = torch.zeros(len(samples), dtype=torch.bool, device=real.device)
    counts = torch.zeros(len(samples), dtype=torch.int64, device=real.device)
    recalled, covered = [], []
    for rows, distances in _distances(real, samples):  # (n, M)
        inside |= (distances <= precise[rows, None]).any(dim=0)
        near = distances <= dense[rows, None]
        counts += near.sum(dim=0)
        covered.append(near.any(dim=1))
        recalled.append((distances <= own).any(dim=1))
    return Manifolds(
        precision=_share(inside),
        recall=_share(torch.cat(recalled)),
        density=float(counts.double().mean()) / density_neighbours,
        coverage=_share(torch.cat(covered)),
    )


def neighbour_distances(points: Tensor, neighbours: list[int]) -> list[Tensor]:
    """For each k of `neighbours`: the distance of each point (N, d) to its k-th nearest other one, (N,)."""
    found: list[list[Tensor]] = [[] for _ in neighbours]
    for rows, distances in _distances(points, points):
        distances.diagonal(offset=rows.start).fill_(torch.inf)
        nearest = distances.topk(max(neighbours), dim=1, largest=False).values
        for place, k in enumerate(neighbours):
            found[place].append(nearest[:, k - 1])
    return [torch.cat(parts) for parts in found]


def _distances(points: Tensor, others: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, distances of these points to all others), a few rows at a time."""
    step = max(1, CHUNK_BYTES // (8 * len(others)))
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        yield rows, torch.cdist(points[rows], others)


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())
