"""What a model sees of pixels, and pixels back: distributions, seeds, constants, and a noise that is one class more."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tarflow.measure import NOISES, Measure, requantize, to_8bit
from tarflow.seeding import seeded_generator

levels_of = st.integers(2, 256)
calm = settings(deadline=None, max_examples=50)  # the first example pays for torch's start


def measure(noise: str, levels: int = 17, std: float = 0.05) -> Measure:
    return Measure(levels, noise, std)


def every_level(levels: int) -> torch.Tensor:
    return torch.arange(levels).to(torch.uint8)


@calm
@given(levels_of)
def test_clean_pixels_span_minus_one_to_one_and_come_back(levels: int) -> None:
    k = every_level(levels)
    x = measure("gaussian", levels).clean(k)
    assert x.dtype == torch.float32
    assert x[0] == -1
    assert x[-1] == 1
    torch.testing.assert_close(x.double(), 2 * k.double() / (levels - 1) - 1, rtol=0, atol=1e-7)
    assert torch.equal(measure("gaussian", levels).pixels(x), k)


@calm
@given(levels_of, st.floats(0.01, 0.99))
def test_dequantised_pixels_come_back(levels: int, u: float) -> None:
    k = every_level(levels)
    x = NOISES["uniform"].noisy(k, levels, 0.0, torch.full((levels,), u))
    assert x.dtype == torch.float32
    assert x.min() >= -1
    assert x.max() < 1
    assert torch.equal(Measure(levels).pixels(x), k)


@pytest.mark.parametrize("noise", list(NOISES))
def test_clean_is_the_mean_and_the_moments_say_so(noise: str) -> None:
    found, k = measure(noise), every_level(17)
    slope, offset, variance = found.kind.moments(17, found.noise_std)
    torch.testing.assert_close(found.clean(k).double(), slope * k.double() + offset, rtol=0, atol=1e-7)
    x = found.noisy(torch.full((1, 1, 300, 300), 9, dtype=torch.uint8), seeded_generator(0)).double()
    assert float(x.mean() - found.clean(k)[9]) == pytest.approx(0, abs=4 * math.sqrt(variance) / 300)
    assert float(x.var()) == pytest.approx(variance, rel=0.02)


def test_what_lies_outside_is_clipped() -> None:
    x = torch.tensor([-7.0, -1.0, 1.0, 1e30])
    for noise in NOISES:
        assert measure(noise).pixels(x).tolist() == [0, 0, 16, 16]
    assert measure("gaussian", 256).pixels(x.half().clamp(-9, 9)).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 2 that are not"):
        Measure().pixels(torch.tensor([0.0, bad]))


def test_unknown_noise_and_impossible_levels_are_errors() -> None:
    with pytest.raises(ValueError, match="'gaussian' or 'uniform', got 'laplace'"):
        Measure(noise="laplace")
    for levels in (1, 257):
        with pytest.raises(ValueError, match=f"levels: expected 2 to 256, got {levels}"):
            Measure(levels)


def test_a_measure_is_its_fields() -> None:
    assert Measure(17, "uniform", 0.3) == Measure(17), "there is no σ that would tell them apart"
    assert (Measure().figure, Measure().sigma) == ("bits_per_dim", None)
    noisy = Measure(256, "gaussian", 0.05)
    assert (noisy.figure, noisy.sigma, str(noisy)) == ("noisy_bits_per_dim", 0.05, "density of x + 0.05·ε")
    assert noisy.bits_per_dim(math.log(255 / 2), 1) == pytest.approx(0, abs=1e-12)
    assert Measure().bits_per_dim(torch.tensor([-4 * math.log(2)]), 2).tolist() == pytest.approx([9])


@calm
@given(levels_of, levels_of)
def test_requantising_rounds_to_the_nearest_level(levels: int, new_levels: int) -> None:
    k = every_level(levels)
    new = requantize(k, levels, new_levels)
    assert new.dtype == torch.uint8
    exact = k.double() * (new_levels - 1) / (levels - 1)
    assert (new - exact).abs().max() <= 0.5 + 1e-9
    assert new[0] == 0
    assert new[-1] == new_levels - 1
    if new_levels >= levels:  # nothing is lost on the way up
        assert torch.equal(requantize(new, new_levels, levels), k)


def test_requantising_keeps_shape_and_input() -> None:
    images = torch.randint(0, 17, (3, 1, 4, 5), dtype=torch.uint8)
    before = images.clone()
    for new_levels in (17, 4):
        new = requantize(images, 17, new_levels)
        assert new.shape == images.shape
        new.fill_(9)
        assert torch.equal(images, before)
    assert requantize(images[:0], 17, 256).shape == (0, 1, 4, 5)


def test_eight_bits_for_showing() -> None:
    assert to_8bit(torch.tensor([0, 1, 16], dtype=torch.uint8), 17).tolist() == [0, 16, 255]
    k = every_level(256)
    assert torch.equal(to_8bit(k, 256), k)


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_what_is_clipped_is_what_no_pixel_can_be(noise: str) -> None:
    x = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)
    beyond = measure(noise).clipped(x)
    wide = torch.round((x + 1) * 16 / 2) if noise == "gaussian" else torch.floor((x + 1) * 17 / 2)
    assert torch.equal(beyond, wide != measure(noise).pixels(x).double())
    assert not measure(noise).clipped(measure(noise).clean(every_level(17))).any()
    assert 0.2 < float(beyond.double().mean()) < 0.4


@pytest.mark.parametrize(("levels", "new_levels"), [(3, 2), (5, 3), (17, 9), (9, 17), (255, 128), (256, 17), (2, 256)])
def test_requantising_is_the_nearest_level_and_a_half_goes_up(levels: int, new_levels: int) -> None:
    exact = [Fraction(k * (new_levels - 1), levels - 1) for k in range(levels)]
    by_hand = [math.floor(value + Fraction(1, 2)) for value in exact]
    assert requantize(every_level(levels), levels, new_levels).flatten().tolist() == by_hand
    if levels in (3, 5, 17, 255):
        assert any(value.denominator == 2 for value in exact), "there must be a half for its way to matter"


PIXELS = torch.arange(16, dtype=torch.uint8).reshape(4, 1, 2, 2).expand(4, 3, 2, 2)


def _each(rows: Iterable[int], seed: int = 0) -> list[torch.Generator]:
    return [seeded_generator(seed, "noise", int(k)) for k in rows]


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_noise_of_an_image_does_not_depend_on_its_batch(noise: str) -> None:
    together = measure(noise).noisy(PIXELS, _each(range(4)))
    alone = torch.cat([measure(noise).noisy(PIXELS[k : k + 1], _each([k])) for k in range(4)])
    assert torch.equal(together, alone)
    other = measure(noise).noisy(PIXELS, _each(range(4), seed=1))
    assert not torch.isclose(together, other, rtol=0, atol=1e-6).any()


def test_uniform_noise_fills_the_cell_of_each_level_evenly() -> None:
    pixels = torch.full((100, 1, 32, 32), 3, dtype=torch.uint8)
    x = Measure(8).noisy(pixels, seeded_generator(0))
    assert x.dtype == torch.float32
    u = (x + 1) * 4 - 3
    assert u.min() >= 0 and u.max() <= 1
    count = u.numel()
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * count)
    assert abs(float(u.var()) - 1 / 12) < 4 / math.sqrt(180 * count)  # the variance of (u - ½)² is 1/180
    assert torch.equal(Measure(8).pixels(x), pixels)


def test_gaussian_noise_has_the_mean_of_the_pixels_and_the_standard_deviation_asked_for() -> None:
    pixels = torch.full((100, 1, 32, 32), 16, dtype=torch.uint8)
    x = Measure(17, "gaussian", 0.15).noisy(pixels, seeded_generator(0))
    count = x.numel()
    assert abs(float(x.mean()) - 1) < 4 * 0.15 / math.sqrt(count)
    assert abs(float(x.std()) - 0.15) < 4 * 0.15 / math.sqrt(2 * count)


def test_pixels_are_left_as_they_were_and_may_be_none_at_all() -> None:
    pixels = PIXELS.clone()
    Measure(17, "gaussian", 0.1).noisy(pixels, seeded_generator(0))
    assert torch.equal(pixels, PIXELS)
    assert Measure(17).noisy(pixels[:0], []).shape == (0, 3, 2, 2)


@pytest.mark.parametrize(
    ("pixels", "std", "message"),
    [
        (PIXELS.float(), 0.1, "pixels: expected uint8"),
        (PIXELS, 0.0, "noise_std: expected a positive number"),
        (PIXELS, math.nan, "noise_std: expected a positive number"),
        (PIXELS[:3], 0.1, "generator: expected one, or 3"),
    ],
)
def test_what_does_not_fit_is_named(pixels: torch.Tensor, std: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure("gaussian", std=std).noisy(pixels, _each(range(4)))


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_rows_of_a_batch_get_the_noise_that_they_get_in_it(noise: str) -> None:
    whole = measure(noise).noisy(PIXELS, seeded_generator(0, "batch"))
    for rows in (slice(0, 1), slice(1, 4), slice(4, 4)):
        part = measure(noise).noisy(PIXELS[rows], seeded_generator(0, "batch"), rows, 4)
        assert torch.equal(part, whole[rows])
    with pytest.raises(ValueError, match="rows: expected 4, one an image, got 2 of 4"):
        measure(noise).noisy(PIXELS, seeded_generator(0, "batch"), slice(0, 2), 4)
