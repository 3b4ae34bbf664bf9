"""Levels of a pixel to numbers in [-1, 1], and back.

A pixel is a level `k` in 0..L-1, held as uint8. The model sees `x`, one of two ways:

    samples      x = 2k/(L-1) - 1          both ends are exact; Gaussian noise comes after
    likelihoods  x = 2(k+u)/L - 1          u uniform in [0, 1): the density of x bounds the probability of k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tarflow.fields import integer, real

Noise: TypeAlias = Literal["gaussian", "uniform"]

MAX_LEVELS = 256  # a level is one byte


def check_levels(levels: int) -> None:
    """Raise a ValueError unless `levels` is a number of values that a pixel of one byte can have."""
    if not 2 <= integer("levels", levels) <= MAX_LEVELS:
        raise ValueError(f"levels: expected 2 to {MAX_LEVELS}, got {levels}")


def scale_pixels(pixels: Tensor, levels: int) -> Tensor:
    """`x = 2k/(L-1) - 1` in float32, of any shape: level 0 is -1 and level L-1 is 1, exactly.

    >>> scale_pixels(torch.tensor([0, 8, 16], dtype=torch.uint8), levels=17)
    tensor([-1.,  0.,  1.])
    """
    check_levels(levels)
    return pixels.to(torch.float32) * 2 / (levels - 1) - 1


def dequantize(pixels: Tensor, levels: int, u: Tensor) -> Tensor:
    """`x = 2(k+u)/L - 1` with `u` uniform in [0, 1), of the shape of `pixels`; in the precision of `u`,
    at least float32.

    >>> dequantize(torch.tensor([0, 255]), levels=256, u=torch.tensor([0.0, 0.5]))
    tensor([-1.0000,  0.9961])
    """
    check_levels(levels)
    if u.shape != pixels.shape:
        raise ValueError(f"u: expected the shape of the pixels {tuple(pixels.shape)}, got {tuple(u.shape)}")
    return (pixels + u.to(torch.promote_types(u.dtype, torch.float32))) * 2 / levels - 1


def to_pixels(x: Tensor, levels: int, noise: Literal["gaussian", "uniform"]) -> Tensor:
    """The levels nearest to `x`, as uint8: the inverse of the way that the model with this `noise` sees pixels.

    gaussian: `round((x+1)(L-1)/2)`, the inverse of `scale_pixels`; uniform: `floor((x+1)L/2)`, the inverse of
    `dequantize`. Both are clipped to 0..L-1. Numbers that are not finite are a ValueError.

    >>> to_pixels(torch.tensor([-3.0, 0.0, 1.0]), levels=256, noise="uniform")
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    check_levels(levels)
    if noise not in ("gaussian", "uniform"):
        raise ValueError(f"noise: expected 'gaussian' or 'uniform', got {noise!r}")
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise ValueError(f"x: expected finite numbers, got {bad} of {x.numel()} that are not")
    return _nearest(x, levels, noise).clamp(0, levels - 1).to(torch.uint8)


def clipped(x: Tensor, levels: int, noise: Literal["gaussian", "uniform"]) -> Tensor:
    """Which numbers of `x` lie beyond what a pixel can be, so that `to_pixels` clips them: bool, of the shape of x.

    >>> clipped(torch.tensor([-1.001, -1.1, 0.0, 1.1]), levels=256, noise="gaussian")
    tensor([False,  True, False,  True])
    """
    check_levels(levels)
    k = _nearest(x, levels, noise)
    return (k < 0) | (k > levels - 1)


def _nearest(x: Tensor, levels: int, noise: Literal["gaussian", "uniform"]) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.round((x + 1) * (levels - 1) / 2) if noise == "gaussian" else torch.floor((x + 1) * levels / 2)


def requantize(pixels: Tensor, levels: int, new_levels: int) -> Tensor:
    """`k' = round(k (L'-1)/(L-1))`: the same picture with another number of levels, uint8 to uint8, a half goes up."""
    check_levels(levels)
    check_levels(new_levels)
    if levels == new_levels:
        return pixels.clone()
    k = torch.arange(levels, device=pixels.device, dtype=torch.int64)
    table = ((2 * k * (new_levels - 1) + levels - 1) // (2 * (levels - 1))).to(torch.uint8)  # in whole numbers
    # An index takes 4 bytes a pixel: in slices, so that a large data set does not need five times its size.
    parts = [table[part.int()] for part in pixels.reshape(-1).split(1 << 24)]
    return torch.cat(parts).reshape(pixels.shape) if parts else pixels.clone()


def to_8bit(pixels: Tensor, levels: int) -> Tensor:
    """`round(255 k/(L-1))` as uint8, to show or to write.

    >>> to_8bit(torch.tensor([0, 8, 16], dtype=torch.uint8), levels=17)
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return requantize(pixels, levels, MAX_LEVELS)


def flip_horizontally(images: Tensor, mask: Tensor) -> Tensor:
    """A copy of `images` (B, C, H, W), mirrored from left to right where `mask` (B,), bool, is true."""
    if images.ndim != 4 or mask.shape != images.shape[:1] or mask.dtype != torch.bool:
        raise ValueError(
            f"expected images (B, C, H, W) and mask (B,) bool, "
            f"got {tuple(images.shape)} and {tuple(mask.shape)} {mask.dtype}"
        )
    return torch.where(mask[:, None, None, None], images.flip(-1), images)


def noisy_images(
    pixels: Tensor,
    levels: int,
    noise: Noise,
    noise_std: float,
    generator: torch.Generator | Sequence[torch.Generator],
    rows: slice | None = None,
    total: int | None = None,
) -> Tensor:
    """What a model trained with this noise sees of `pixels`, drawn afresh.

        uniform     x = 2(k+u)/L - 1,        u ~ U[0, 1)
        gaussian    x = 2k/(L-1) - 1 + σε,   ε ~ N(0, 1)

    Args:
        pixels: (B, C, H, W) uint8, levels k = 0 … L-1.
        levels: L.
        noise_std: σ > 0, in units where pixels span -1 to 1; not used with uniform noise.
        generator: one for the batch, or a sequence of one an image, with which the noise of an image does not depend
            on the batch that it is in. It may live on another device than the pixels.
        rows, total: with one generator, the pixels are these rows of a batch of `total` images, and get the noise that
            they would get there. By default they are all of it.

    Returns:
        (B, C, H, W) float32, on the device of the pixels.

    Raises:
        ValueError: pixels that are not uint8, an unknown noise, σ, or the number of generators. That no pixel reaches
            L is not checked: it would wait for the device in every step.

    >>> pixels = torch.zeros(2, 1, 1, 1, dtype=torch.uint8)
    >>> x = noisy_images(pixels, 4, "uniform", 0.0, torch.Generator().manual_seed(0))
    >>> bool(((x >= -1) & (x < -0.5)).all())
    True
    """
    check_noise(noise, noise_std)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels: expected uint8, got {pixels.dtype}")
    if isinstance(generator, torch.Generator):
        drawn = _draw((total or len(pixels), *pixels.shape[1:]), noise, generator)
        drawn = drawn if rows is None else drawn[rows]
        if len(drawn) != len(pixels):
            raise ValueError(f"rows: expected {len(pixels)}, one an image, got {len(drawn)} of {total}")
    elif len(generator) != len(pixels):
        raise ValueError(f"generator: expected one, or {len(pixels)}, one an image, got {len(generator)}")
    elif not generator:
        drawn = torch.empty(pixels.shape, device=pixels.device, dtype=torch.float32)
    else:
        drawn = torch.stack([_draw(pixels.shape[1:], noise, each) for each in generator])
    drawn = drawn.to(pixels.device)
    if noise == "uniform":
        return dequantize(pixels, levels, drawn)
    return scale_pixels(pixels, levels) + noise_std * drawn


def check_noise(noise: str, noise_std: float) -> None:
    """Raise a ValueError unless the noise is known and, where it is Gaussian, σ is a positive number."""
    if noise not in ("gaussian", "uniform"):
        raise ValueError(f"noise: expected 'gaussian' or 'uniform', got {noise!r}")
    if noise == "gaussian":
        real("noise_std", noise_std, "a positive number", lambda value: value > 0)


def _draw(shape: Sequence[int], noise: Noise, generator: torch.Generator) -> Tensor:
    if noise == "uniform":
        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
