"""Levels to numbers and back."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tarflow.measure import clipped, dequantize, flip_horizontally, requantize, scale_pixels, to_8bit, to_pixels

levels_of = st.integers(2, 256)
calm = settings(deadline=None, max_examples=50)  # the first example pays for torch's start


def every_level(levels: int) -> torch.Tensor:
    return torch.arange(levels).to(torch.uint8)


@calm
@given(levels_of)
def test_scaled_pixels_span_minus_one_to_one_and_come_back(levels: int) -> None:
    k = every_level(levels)
    x = scale_pixels(k, levels)
    assert x.dtype == torch.float32
    assert x[0] == -1
    assert x[-1] == 1
    torch.testing.assert_close(x.double(), 2 * k.double() / (levels - 1) - 1, rtol=0, atol=1e-7)
    assert torch.equal(to_pixels(x, levels, "gaussian"), k)


@calm
@given(levels_of, st.floats(0.01, 0.99))
def test_dequantised_pixels_come_back(levels: int, u: float) -> None:
    k = every_level(levels)
    x = dequantize(k, levels, torch.full((levels,), u))
    assert x.dtype == torch.float32
    assert x.min() >= -1
    assert x.max() < 1
    assert torch.equal(to_pixels(x, levels, "uniform"), k)


def test_dequantize_is_its_formula_in_the_precision_of_u() -> None:
    k, u = torch.tensor([[0, 3], [16, 7]], dtype=torch.uint8), torch.rand(2, 2, dtype=torch.float64)
    torch.testing.assert_close(dequantize(k, 17, u), 2 * (k + u) / 17 - 1, rtol=0, atol=0)
    assert dequantize(k, 17, u.to(torch.bfloat16)).dtype == torch.float32
    with pytest.raises(ValueError, match=r"u: expected the shape .*\(2, 2\), got \(2,\)"):
        dequantize(k, 17, u[0])


def test_what_lies_outside_is_clipped() -> None:
    x = torch.tensor([-7.0, -1.0, 1.0, 1e30])
    for noise in ("gaussian", "uniform"):
        assert to_pixels(x, 17, noise).tolist() == [0, 0, 16, 16]  # type: ignore[arg-type]
    assert to_pixels(x.half().clamp(-9, 9), 256, "gaussian").tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 2 that are not"):
        to_pixels(torch.tensor([0.0, bad]), 256, "gaussian")


def test_unknown_noise_and_impossible_levels_are_errors() -> None:
    with pytest.raises(ValueError, match="'gaussian' or 'uniform', got 'laplace'"):
        to_pixels(torch.zeros(1), 256, "laplace")  # type: ignore[arg-type]
    for levels in (1, 257):
        with pytest.raises(ValueError, match=f"levels: expected 2 to 256, got {levels}"):
            scale_pixels(torch.zeros(1, dtype=torch.uint8), levels)


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


def test_flipping_mirrors_the_marked_images_and_leaves_its_input() -> None:
    images = torch.arange(12, dtype=torch.uint8).reshape(2, 1, 2, 3)
    before = images.clone()
    flipped = flip_horizontally(images, torch.tensor([False, True]))
    assert torch.equal(flipped[0], images[0])
    assert flipped[1].tolist() == [[[8, 7, 6], [11, 10, 9]]]
    flipped.zero_()
    assert torch.equal(images, before)
    with pytest.raises(ValueError, match="mask"):
        flip_horizontally(images, torch.tensor([True]))
    with pytest.raises(ValueError, match="bool"):
        flip_horizontally(images, torch.tensor([0, 1]))


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_what_is_clipped_is_what_no_pixel_can_be(noise: str) -> None:
    x = torch.linspace(-1.5, 1.5, 3001, dtype=torch.float64)
    beyond = clipped(x, 17, noise)
    wide = torch.round((x + 1) * 16 / 2) if noise == "gaussian" else torch.floor((x + 1) * 17 / 2)
    assert torch.equal(beyond, wide != to_pixels(x, 17, noise).double())
    assert not clipped(scale_pixels(torch.arange(17).to(torch.uint8), 17), 17, "gaussian").any()
    assert 0.2 < float(beyond.double().mean()) < 0.4


@pytest.mark.parametrize(("levels", "new_levels"), [(3, 2), (5, 3), (17, 9), (9, 17), (255, 128), (256, 17), (2, 256)])
def test_requantising_is_the_nearest_level_and_a_half_goes_up(levels: int, new_levels: int) -> None:
    exact = [Fraction(k * (new_levels - 1), levels - 1) for k in range(levels)]
    by_hand = [math.floor(value + Fraction(1, 2)) for value in exact]
    assert requantize(every_level(levels), levels, new_levels).flatten().tolist() == by_hand
    if levels in (3, 5, 17, 255):
        assert any(value.denominator == 2 for value in exact), "there must be a half for its way to matter"
