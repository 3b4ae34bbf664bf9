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
        # The tensors themselves, which optimizers and `load_state_dict` write into: a small flow spends a twentieth of
        # a step on collecting them.
        self._averaged, self._trained = _tensors(self.flow), _tensors(flow)

    @torch.no_grad()
    def update(self) -> None:
        """Follow the trained flow after a step of its optimizer."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged, self._trained, 1 - decay)
        self.updates += 1


def _tensors(flow: TarFlow) -> list[Tensor]:
    return [tensor.detach() for tensor in flow.state_dict().values()]
