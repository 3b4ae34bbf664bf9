"""The noise that training and scoring share: its distribution, its seeds, its errors."""

import math

import pytest
import torch

from tarflow.measure import noisy_images, to_pixels
from tarflow.seeding import seeded_generator

PIXELS = torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2).expand(4, 3, 2, 2)


def _each(rows, seed=0):
    return [seeded_generator(seed, "noise", int(k)) for k in rows]


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_noise_of_an_image_does_not_depend_on_its_batch(noise):
    together = noisy_images(PIXELS, 17, noise, 0.05, _each(range(4)))
    alone = torch.cat([noisy_images(PIXELS[k : k + 1], 17, noise, 0.05, _each([k])) for k in range(4)])
    assert torch.equal(together, alone)
    other = noisy_images(PIXELS, 17, noise, 0.05, _each(range(4), seed=1))
    assert not torch.isclose(together, other, rtol=0, atol=1e-6).any()


def test_uniform_noise_fills_the_cell_of_each_level_evenly():
    pixels = torch.full((100, 1, 32, 32), 3, dtype=torch.uint8)
    x = noisy_images(pixels, 8, "uniform", 0.0, seeded_generator(0))
    assert x.dtype == torch.float32
    u = (x + 1) * 4 - 3
    assert u.min() >= 0 and u.max() <= 1
    count = u.numel()
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * count)
    assert abs(float(u.var()) - 1 / 12) < 4 / math.sqrt(180 * count)  # the variance of (u - ½)² is 1/180
    assert torch.equal(to_pixels(x, 8, "uniform"), pixels)


def test_gaussian_noise_has_the_mean_of_the_pixels_and_the_standard_deviation_asked_for():
    pixels = torch.full((100, 1, 32, 32), 16, dtype=torch.uint8)
    x = noisy_images(pixels, 17, "gaussian", 0.15, seeded_generator(0))
    count = x.numel()
    assert abs(float(x.mean()) - 1) < 4 * 0.15 / math.sqrt(count)
    assert abs(float(x.std()) - 0.15) < 4 * 0.15 / math.sqrt(2 * count)


def test_pixels_are_left_as_they_were_and_may_be_none_at_all():
    pixels = PIXELS.clone()
    noisy_images(pixels, 17, "gaussian", 0.1, seeded_generator(0))
    assert torch.equal(pixels, PIXELS)
    assert noisy_images(pixels[:0], 17, "uniform", 0.0, []).shape == (0, 3, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": PIXELS.float()}, "pixels: expected uint8"),
        ({"noise": "pink"}, "noise: expected 'gaussian' or 'uniform', got 'pink'"),
        ({"noise_std": 0.0}, "noise_std: expected a positive number"),
        ({"noise_std": math.nan}, "noise_std: expected a positive number"),
        ({"generator": _each(range(3))}, "generator: expected one, or 4"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"pixels": PIXELS, "levels": 17, "noise": "gaussian", "noise_std": 0.1, "generator": _each(range(4))}
    with pytest.raises(ValueError, match=message):
        noisy_images(**arguments | change)


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_rows_of_a_batch_get_the_noise_that_they_get_in_it(noise):
    whole = noisy_images(PIXELS, 17, noise, 0.05, seeded_generator(0, "batch"))
    for rows in (slice(0, 1), slice(1, 4), slice(4, 4)):
        part = noisy_images(PIXELS[rows], 17, noise, 0.05, seeded_generator(0, "batch"), rows, 4)
        assert torch.equal(part, whole[rows])
    with pytest.raises(ValueError, match="rows: expected 4, one an image, got 2 of 4"):
        noisy_images(PIXELS, 17, noise, 0.05, seeded_generator(0, "batch"), slice(0, 2), 4)
