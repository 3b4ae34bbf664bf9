"""What comes in: images, latents and labels, each as the model expects it or an error that says what was expected."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from tarflow.config import TarFlowConfig
from tarflow.fields import own_number
from tarflow.model.block import NULL_CLASS

PIXELS_FROM = 8.0
"""Images without a negative number, the largest of which lies between these, are pixels that nobody has scaled."""
PIXELS_TO = 255


def check_images(x: Any, config: TarFlowConfig) -> None:
    """Raise ValueError unless x is a floating tensor (B, C, H, W) of this model's size; warn where it holds pixels."""
    height, width = config.image_shape
    expected = (config.channels, height, width)
    check_tensor("x", x, f"images (B, {', '.join(map(str, expected))})")
    if x.ndim != 4 or tuple(x.shape[1:]) != expected:
        raise ValueError(f"x: expected images (B, {', '.join(map(str, expected))}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x: expected floating-point values, got {x.dtype}; pixels are scaled to -1 … 1 first")
    if x.device.type != "cpu" or not x.numel():  # a look at values would make the host wait for another device
        return
    if told((x.amin() >= 0) & (x.amax() > PIXELS_FROM) & (x.amax() <= PIXELS_TO)):
        warnings.warn(
            f"x: values from {x.min():g} to {x.max():g} look like pixels; the model sees -1 … 1, 2·k/(levels - 1) - 1",
            stacklevel=3,
        )


def check_latents(z: Any, config: TarFlowConfig, name: str) -> None:
    """Raise ValueError unless z, called `name`, is a floating tensor (B, T, D) of this model's size."""
    expected = (config.num_patches, config.patch_dim)
    check_tensor(name, z, f"latents (B, {expected[0]}, {expected[1]})")
    if z.ndim != 3 or tuple(z.shape[1:]) != expected:
        raise ValueError(f"{name}: expected latents (B, {expected[0]}, {expected[1]}), got {tuple(z.shape)}")
    if not z.is_floating_point():
        raise ValueError(f"{name}: expected floating-point values, got {z.dtype}")


def check_labels(y: Any, batch: int, config: TarFlowConfig, device: torch.device) -> Tensor | None:
    """Labels as int64 on `device`; ValueError where they are not (batch,) known classes.

    Where their values cannot be asked for (`told`), an unknown one becomes an index that no table has.
    """
    if y is None:
        return None
    y = as_labels(y)
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or tuple(y.shape) != (batch,):
        raise ValueError(f"y: expected ({batch},) integer labels, got {tuple(y.shape)} of {y.dtype}")
    y = y.to(torch.int64)
    unknown = (y < NULL_CLASS) | (y >= config.num_classes)
    if told(unknown.any()):
        known = f"0 to {config.num_classes - 1}" if config.num_classes else "no class (unconditional model)"
        raise ValueError(f"y: expected {known}, or {NULL_CLASS} for the null class, got {y[unknown][0].item()}")
    return torch.where(unknown, config.num_classes + 1, y).to(device)


def as_labels(y: Any) -> Tensor:
    """Labels that came as a tensor, an array, a sequence or one int, as a tensor of their own dtype."""
    if isinstance(y, Tensor):
        return y
    if isinstance(y, list | tuple) and any(isinstance(own_number(label), bool) for label in y):
        raise ValueError(f"y: expected integer labels, got a boolean among {y!r}")
    try:
        return torch.as_tensor(y, device="cpu", dtype=None)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"y: expected integer labels, got {type(y).__name__} {y!r}") from None


def told(condition: Tensor) -> bool:
    """Whether a 0-d condition holds; False where nobody may ask: a compiler or exporter, `vmap`, a recorded graph."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    if condition.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    try:
        return bool(condition)
    except RuntimeError:  # under vmap, and on the meta device
        return False


def check_tensor(name: str, value: Any, expected: str) -> None:
    """Raise ValueError, with what was `expected`, unless a value is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: expected a tensor of {expected}, got {type(value).__module__}.{type(value).__name__}; "
            "an array becomes one by torch.from_numpy, a picture by numpy.asarray before that"
        )
