"""Splines, numbers and parameters that its laws are held against, for the operations and for the C."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tarflow import SequenceConfig
from tarflow.model import spline_native
from tarflow.model.spline import Spline
from tarflow.native.compile import compiled

has_compiler = compiled("spline", spline_native.FUNCTIONS) is not None
needs_compiler = pytest.mark.skipif(not has_compiler, reason="needs GCC and a PyTorch with libgomp")
SHAPES = [
    (5, 8, 1.0, 4.0),
    (1, 8, 3.0, None),
    (12, 8, 1.0, 4.0),
    (16, 3, 0.5, 0.6),
    (37, 8, 1.0, None),
    (3, 1, 1.0, 4.0),
]
every_shape = pytest.mark.parametrize(("dim", "bins", "interval", "bound"), SHAPES)


def make(dim: int = 5, bins: int = 8, interval: float = 1.0, bound: float | None = 4.0) -> Spline:
    fields: dict[str, Any] = dict(tokens=4, width=8, layers=(1,), head_dim=8, transforms=("spline",))
    return Spline(SequenceConfig(dim=dim, bins=bins, interval=interval, log_scale_bound=bound, **fields))


def drawn(spline: Spline, rows: int = 11, wild: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """x, of which a part lies outside of the interval, and parameters, as (2, rows, ·)."""
    x = torch.randn(2, rows, spline.dim, dtype=torch.float64) * spline.interval * 0.7
    return x.to(dtype), (wild * torch.randn(2, rows, spline.size, dtype=torch.float64)).to(dtype)
