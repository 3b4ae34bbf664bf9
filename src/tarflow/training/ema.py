"""Averaged weights: the exponential moving average that everything quoted comes from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tarflow.model.flow import TarFlow


class EMA:
    """A copy of the flow whose weights and base variance follow the trained ones.

        w̄ ← d_n w̄ + (1 - d_n) w,    d_n = min(decay, (1+n)/(10+n))

    after n updates. Without that warm-up the first thousands of steps would quote the initial weights.
    """

    def __init__(self, flow: TarFlow, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.flow = copy.deepcopy(flow).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, flow: TarFlow) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(_floats(self.flow), _floats(flow), 1 - decay)
        self.updates += 1


def _floats(flow: TarFlow) -> list[Tensor]:
    return [tensor.detach() for tensor in flow.state_dict().values()]
