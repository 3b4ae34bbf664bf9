"""The yardstick against scikit-learn's Ledoit-Wolf and torch's multivariate normal."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from torch.distributions import MultivariateNormal

from tarflow.evaluation.likelihood import gaussian
from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, NoYardstick, fit_yardstick
from tarflow.measure import Measure
from tarflow.seeding import seeded_generator


def correlated_images(count, channels=2, size=3, levels=17, seed=0):
    """Images with structure between their pixels."""
    generator = torch.Generator().manual_seed(seed)
    dims = channels * size * size
    mixed = torch.randn(count, 3, generator=generator) @ torch.randn(3, dims, generator=generator)
    mixed = mixed + torch.randn(count, dims, generator=generator)
    return (8 + 2 * mixed).round().clamp(0, levels - 1).to(torch.uint8).view(count, channels, size, size)


def clean(images, levels, noise):
    k = images.flatten(1).double().numpy()
    return 2 * (k + 0.5) / levels - 1 if noise == "uniform" else 2 * k / (levels - 1) - 1


@pytest.mark.parametrize("count", [5, 12, 300])  # fewer than the 18 dimensions, and more
@pytest.mark.parametrize(
    ("noise", "noise_std", "variance"), [("uniform", 0, (2 / 17) ** 2 / 12), ("gaussian", 0.3, 0.09)]
)
def test_covariance_is_that_of_scikit_learn_with_the_noise_added(count, noise, noise_std, variance, monkeypatch):
    images = correlated_images(count)
    x = clean(images, 17, noise)
    covariance, shrinkage = ledoit_wolf(x)
    monkeypatch.setattr(gaussian, "CHUNK_BYTES", 8 * 18 * 7)  # seven images a chunk
    fitted = GaussianYardstick.fit(images, Measure(17, noise, noise_std))
    assert fitted.images == count
    assert fitted.shrinkage == pytest.approx(shrinkage, rel=1e-9)
    np.testing.assert_allclose(fitted.mean, x.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(fitted.factor @ fitted.factor.T, covariance + variance * np.eye(18), atol=1e-12)


def test_full_shrinkage_is_that_of_scikit_learn():
    corners = torch.tensor(list(itertools.product((0, 16), repeat=3)), dtype=torch.uint8)
    images = torch.cat([corners, corners[:1]]).view(9, 1, 1, 3)  # nearly a multiple of I
    _, shrinkage = ledoit_wolf(clean(images, 17, "uniform"))
    assert shrinkage == 1
    assert GaussianYardstick.fit(images, Measure(17)).shrinkage == 1


def test_the_noise_that_is_added_is_the_noise_of_the_model():
    images = correlated_images(40).repeat(500, 1, 1, 1)  # so many that shrinkage does nothing
    for noise, noise_std in (("uniform", 0.0), ("gaussian", 0.3)):
        fitted = GaussianYardstick.fit(images, Measure(17, noise, noise_std))
        x = Measure(17, noise, noise_std).noisy(images, seeded_generator(0)).flatten(1).double()
        covariance = fitted.factor @ fitted.factor.T
        spread = covariance.diagonal().sqrt()
        assert ((x.mean(dim=0) - fitted.mean) / spread * 20_000**0.5).abs().max() < 4
        error = (torch.cov(x.T) - covariance) / torch.outer(spread, spread)
        assert error.abs().max() < 5 * (2 / 20_000) ** 0.5


def test_log_prob_is_that_of_the_multivariate_normal():
    fitted = GaussianYardstick.fit(correlated_images(100), Measure(17))
    x = torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = MultivariateNormal(fitted.mean, scale_tril=fitted.factor).log_prob(x.flatten(1).double())
    torch.testing.assert_close(fitted.log_prob(x), expected, rtol=1e-12, atol=1e-9)
    with pytest.raises(ValueError, match="x: expected 18 numbers an image, got 9"):
        fitted.log_prob(x[:, :1])


def test_images_that_are_all_the_same_leave_the_noise():
    images = torch.full((4, 1, 2, 2), 3, dtype=torch.uint8)
    fitted = GaussianYardstick.fit(images, Measure(17, "gaussian", 0.5))
    assert fitted.shrinkage == 0
    torch.testing.assert_close(fitted.factor, 0.5 * torch.eye(4, dtype=torch.float64))


def test_what_is_too_large_or_too_little_says_so():
    large = torch.zeros(2, 3, 128, 128, dtype=torch.uint8)
    none = fit_yardstick(large, Measure(256))
    assert isinstance(none, NoYardstick)
    assert "49152 numbers in an image" in none.note
    assert "two images, got 1" in fit_yardstick(large[:1], Measure(256)).note
    with pytest.raises(ValueError, match="gaussian yardstick: 49152 numbers"):
        GaussianYardstick.fit(large, Measure(256))
    with pytest.raises(ValueError, match="noise_std"):
        fit_yardstick(correlated_images(5), Measure(17, "gaussian"))
    with pytest.raises(ValueError, match="images: expected"):
        fit_yardstick(correlated_images(5).float(), Measure(17))


def test_fewer_images_than_numbers_make_a_weak_yardstick() -> None:
    images = torch.randint(0, 256, (40, 1, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    weak = GaussianYardstick.fit(images[:36], Measure(256))
    assert "weak: 36 images of 36 numbers are too few" in weak.note
    assert "weak" not in GaussianYardstick.fit(images, Measure(256)).note
