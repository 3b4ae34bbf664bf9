"""Precision, recall, density and coverage, on points whose neighbourhoods one can see, and against loops."""

import pytest
import torch

from tarflow.evaluation.quality import manifolds as module
from tarflow.evaluation.quality.manifolds import manifolds, neighbour_distances


def points(n, seed, shift=0.0):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_loops(real, samples, k, dense_k):
    def radius(own, i, k):
        return sorted(float((own[i] - own[j]).norm()) for j in range(len(own)) if j != i)[k - 1]

    near = [[float((r - s).norm()) for s in samples] for r in real]
    count, total = len(samples), len(real)
    precise = [radius(real, i, k) for i in range(total)]
    dense = [radius(real, i, dense_k) for i in range(total)]
    own = [radius(samples, j, k) for j in range(count)]
    return (
        sum(any(near[i][j] <= precise[i] for i in range(total)) for j in range(count)) / count,
        sum(any(near[i][j] <= own[j] for j in range(count)) for i in range(total)) / total,
        sum(near[i][j] <= dense[i] for i in range(total) for j in range(count)) / (dense_k * count),
        sum(any(near[i][j] <= dense[i] for j in range(count)) for i in range(total)) / total,
    )


@pytest.mark.parametrize("chunk", [1 << 26, 8 * 40 * 7])
def test_they_are_their_definitions(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", chunk)
    real, samples = points(40, 0, 5.0), points(30, 1, 5.8)
    found = manifolds(real, samples)
    expected = by_loops(real, samples, 3, 5)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)
    assert 0.2 < found.precision < 1 and 0.2 < found.recall < 1  # else this would say little
    other = manifolds(real, samples, precision_neighbours=1, density_neighbours=2)
    assert (other.precision, other.recall, other.density, other.coverage) == pytest.approx(
        by_loops(real, samples, 1, 2)
    )


def test_collapsed_samples_are_precise_and_cover_nothing():
    real = points(300, 0)
    samples = real[:1] + 1e-3 * points(300, 1)
    found = manifolds(real, samples)
    assert found.precision == 1 and found.recall < 0.02 and found.coverage < 0.1


def test_samples_far_away_are_nothing_at_all():
    found = manifolds(points(100, 0), points(100, 1, 50.0))
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_the_same_distribution_is_dense_and_covered_as_theory_says():
    found = manifolds(points(2000, 0), points(2000, 1))
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - 2**-5, abs=0.02)
    assert found.precision > 0.9 and found.recall > 0.9


def test_one_outlier_among_real_images_moves_precision_but_not_density():
    """What density is for: a single real image far away has a ball that holds many samples."""
    real, samples = points(200, 0), points(200, 1, 6.0)
    outlier = torch.cat([real, torch.full((1, 3), 6.0, dtype=torch.float64)])
    assert manifolds(real, samples).precision < 0.1
    assert manifolds(outlier, samples).precision > 0.9
    assert manifolds(outlier, samples).density < 0.25


def test_neighbours_leave_out_the_point_itself_and_keep_its_double():
    line = torch.tensor([[0.0], [0.0], [1.0], [3.0]], dtype=torch.float64)
    first, second = neighbour_distances(line, [1, 2])
    assert first.tolist() == [0, 0, 1, 2]
    assert second.tolist() == [1, 1, 1, 3]


def test_too_few_or_unlike_features_are_named():
    with pytest.raises(ValueError, match="samples: expected at least 6 features"):
        manifolds(points(10, 0), points(5, 0))
    with pytest.raises(ValueError, match="expected features of one length, got 3 and 2"):
        manifolds(points(10, 0), points(10, 0)[:, :2])
