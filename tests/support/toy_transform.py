"""A transform in one file: what a newcomer writes."""

from __future__ import annotations

import torch
from torch import Tensor

from tarflow.model.transform import Transform


class TwoSlopes(Transform):
    """z = (x - shift)·e^∓s: one slope above the shift and its inverse below, so that densities lean to a side."""

    params_per_number = 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        v, shift = params.chunk(2, dim=-1)
        log_slope = torch.where(x > shift, -torch.tanh(v), torch.tanh(v))
        return (x - shift) * log_slope.exp(), log_slope.sum(dim=2)

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        v, shift = params.chunk(2, dim=-1)
        return shift + z * torch.where(z > 0, torch.tanh(v), -torch.tanh(v)).exp()
