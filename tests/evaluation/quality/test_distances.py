"""Fréchet and kernel distance, against closed forms, another library's square root, and their own definitions."""

import itertools
import math

import pytest
import torch
from scipy.linalg import sqrtm

from tarflow.evaluation.quality.distances import (
    Moments,
    covariance_factor,
    frechet_distance,
    kernel_distance,
    moments,
    squared_discrepancy,
)
from tarflow.seeding import seeded_permutation


def features(n, d, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    return (torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix) * scale + shift


def gaussian(mean, covariance):
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    return Moments(100, torch.as_tensor(mean, dtype=torch.float64), covariance_factor(covariance))


@pytest.mark.parametrize("n", [5, 12, 13, 20_000])  # fewer than features, as many, one more, more than a chunk
def test_moments_are_mean_and_covariance(n):
    x = features(n, 12, shift=3.0)
    found = moments(x)
    torch.testing.assert_close(found.mean, x.mean(dim=0))
    torch.testing.assert_close(found.factor @ found.factor.T, torch.cov(x.T))
    assert found.trace == pytest.approx(float(x.var(dim=0).sum()))
    assert found.count == n


def test_moments_are_float64_where_the_features_are_not():
    x = features(400, 6, shift=1000.0)
    found = moments(x.float())
    assert found.mean.dtype == found.factor.dtype == torch.float64
    assert frechet_distance(found, moments(x.float().double())) < 1e-9


def test_commuting_covariances_have_a_closed_form():
    a, b = gaussian([0.0, 1.0], [[4.0, 0.0], [0.0, 9.0]]), gaussian([3.0, 5.0], [[1.0, 0.0], [0.0, 25.0]])
    assert frechet_distance(a, b) == pytest.approx(9 + 16 + (2 - 1) ** 2 + (3 - 5) ** 2)
    line = gaussian([0.0, 1.0], [[4.0, 0.0], [0.0, 0.0]])  # singular
    assert frechet_distance(a, line) == pytest.approx(9.0)


@pytest.mark.parametrize(("n", "m"), [(300, 400), (10, 400), (10, 8), (13, 9)])
def test_frechet_distance_is_the_published_formula(n, m):
    """With scipy's square root of the product, which loses half of the digits where that is singular."""
    x, y = features(n, 12), features(m, 12, seed=1, scale=1.5, shift=0.2)
    first, second = torch.cov(x.T).numpy(), torch.cov(y.T).numpy()
    root = torch.as_tensor(sqrtm(first @ second)).real.diagonal().sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2 * root
    singular = min(n, m) <= 12
    assert frechet_distance(moments(x), moments(y)) == pytest.approx(float(expected), rel=1e-5 if singular else 1e-9)


def test_frechet_distance_is_a_symmetric_distance_that_moves_with_its_arguments():
    x, y = features(200, 7), features(150, 7, seed=1)
    there, back = frechet_distance(moments(x), moments(y)), frechet_distance(moments(y), moments(x))
    assert there == pytest.approx(back, rel=1e-9) and there > 0.1
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(moments(3 * x), moments(3 * y)) == pytest.approx(9 * there)
    shift = torch.arange(7.0, dtype=torch.float64)
    moved = frechet_distance(moments(x + shift), moments(x))
    assert moved == pytest.approx(float(shift.square().sum()))


def test_frechet_distance_of_two_samples_of_one_distribution_falls_with_their_number():
    distances = [frechet_distance(moments(features(n, 8)), moments(features(n, 8).flip(0) * -1)) for n in (20, 200)]
    assert distances[0] > 5 * distances[1] > 0


def discrepancy_by_loops(x, y):
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    xx = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    xy = [k(a, b) for a in x for b in y]
    return sum(xx) / len(xx) + sum(yy) / len(yy) - 2 * sum(xy) / len(xy)


def test_the_discrepancy_is_its_definition_and_the_mean_over_subsets_is_that_of_all():
    x, y = features(4, 3), features(4, 3, seed=1, shift=1.0)
    whole = discrepancy_by_loops(x, y)
    assert float(squared_discrepancy(x, y)) == pytest.approx(whole)
    pairs = [list(pair) for pair in itertools.combinations(range(4), 2)]
    halves = [float(squared_discrepancy(x[i], y[j])) for i in pairs for j in pairs]
    assert sum(halves) / len(halves) == pytest.approx(whole)
    found = kernel_distance(x, y, subsets=500, size=2)
    assert found.value == pytest.approx(whole, abs=4 * torch.tensor(halves).std().item() / 500**0.5)
    assert (found.subsets, found.size) == (500, 2)


def test_the_standard_error_is_the_spread_over_fresh_samples():
    values, errors = [], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(300, 4, generator=generator), 1.5 + torch.randn(300, 4, generator=generator)
        found = kernel_distance(x, y, subsets=30, size=100, seed=seed)
        values.append(found.value)
        errors.append(found.standard_error)
    values, errors = torch.tensor(values), torch.tensor(errors)
    # A standard deviation of 40 values is right to 11 %; a plain s/√subsets would be a quarter of it.
    assert 0.7 < float(errors.mean() / values.std()) < 1.5


def test_kernel_distance_of_one_distribution_is_nought_at_any_number():
    values = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(2, 30, 4, generator=generator)
        values.append(kernel_distance(x, y, subsets=20, seed=seed).value)
    values = torch.tensor(values)
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(40)
    assert float(values.min()) < 0  # it is no squared number


def test_the_same_seed_is_the_same_distance():
    x, y = features(50, 3), features(50, 3, seed=1)
    assert kernel_distance(x, y) == kernel_distance(x, y) != kernel_distance(x, y, seed=1)


def test_what_is_no_set_of_features_is_named():
    x = features(10, 3)
    with pytest.raises(ValueError, match=r"features: expected at least 2 features, .* got \(1, 3\)"):
        moments(x[:1])
    with pytest.raises(ValueError, match="x: expected finite features"):
        kernel_distance(torch.full_like(x, torch.nan), x)
    with pytest.raises(ValueError, match="y: expected at least 4 features"):
        kernel_distance(x, x[:3])
    with pytest.raises(ValueError, match="expected features of one length, got 3 and 2"):
        frechet_distance(moments(x), moments(x[:, :2]))
    with pytest.raises(ValueError, match="expected features of one length, got 3 and 2"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="size: expected 2 to 5, half of the smaller set, got 6"):
        kernel_distance(x, x, size=6)
    with pytest.raises(ValueError, match="subsets: expected at least 2, got 1"):
        kernel_distance(x, x, subsets=1)


@pytest.mark.parametrize(("n", "m", "size"), [(40, 60, 10), (60, 40, 10), (40, 40, 20), (300, 50, None)])
def test_the_standard_error_is_the_jackknifes_by_hand(n, m, size):
    """√(size/(n - size)) times the spread over the subsets, with n the smaller of the two counts."""
    x, y = features(n, 3), features(m, 3, seed=1, shift=0.5)
    found = kernel_distance(x, y, subsets=25, size=size, seed=3)
    assert found.size == (size or 25)
    parts = []
    for number in range(25):
        chosen = [
            features[seeded_permutation(len(features), f"kernel distance, {name}", 3, number)[: found.size]]
            for name, features in (("x", x), ("y", y))
        ]
        parts.append(discrepancy_by_loops(*chosen))
    mean = sum(parts) / 25
    spread = math.sqrt(sum((part - mean) ** 2 for part in parts) / 24)
    assert found.value == pytest.approx(mean)
    assert found.standard_error == pytest.approx(spread * math.sqrt(found.size / (min(n, m) - found.size)))
