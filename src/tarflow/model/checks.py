"""What comes in is as the model expects it, or an error says what was expected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_tensor(name: str, value: Any, expected: str) -> None:
    """Raise ValueError, with what was `expected`, unless a value is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name}: expected a tensor of {expected}, got {type(value).__module__}.{type(value).__name__}; "
            "an array becomes one by torch.from_numpy, a picture by numpy.asarray before that"
        )


def check_batch(name: str, value: Any, meaning: str, shape: tuple[int, ...], hint: str = "") -> None:
    """Raise ValueError unless a value is a floating tensor (B, *shape) of what is meant, such as "images"."""
    expected = f"{meaning} (B, {', '.join(map(str, shape))})"
    check_tensor(name, value, expected)
    if value.ndim != len(shape) + 1 or tuple(value.shape[1:]) != shape:
        raise ValueError(f"{name}: expected {expected}, got {tuple(value.shape)}")
    if not value.is_floating_point():
        raise ValueError(f"{name}: expected floating-point values, got {value.dtype}{hint}")


def check_mask(mask: Any, batch: int, tokens: int, why_not: str = "") -> None:
    """Raise ValueError unless a mask is (batch, tokens) booleans, or where a flow takes none: `why_not`."""
    if why_not:
        raise ValueError(f"mask: expected none, {why_not}")
    expected = f"({batch}, {tokens}) booleans, True where a token is there"
    check_tensor("mask", mask, expected)
    if tuple(mask.shape) != (batch, tokens) or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected {expected}, got {tuple(mask.shape)} of {mask.dtype}")


def known_true(condition: Tensor) -> bool:
    """Whether a 0-d condition holds; False where nobody may ask: a compiler or exporter, `vmap`, a recorded graph."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    if condition.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return False
    try:
        return bool(condition)
    except RuntimeError:  # under vmap, and on the meta device
        return False
