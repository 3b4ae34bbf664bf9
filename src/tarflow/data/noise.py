"""From pixels to what a model sees: the noise of training and of scoring, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tarflow.data.pixels import dequantize, scale_pixels
from tarflow.fields import real

Noise: TypeAlias = Literal["gaussian", "uniform"]


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
