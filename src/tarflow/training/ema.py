"""Averaged weights: the exponential moving average, from which all scores and samples come."""

from __future__ import annotations

import copy
from typing import Generic

import torch
from torch import Tensor

from tarflow.model.sequence import SequenceFlow
from tarflow.training.sharding import Flow, is_sharded, local

NUMBERS_AT_ONCE = 1 << 24  # numbers averaged at once: a temporary copy of them takes 64 MB


class EMA(Generic[Flow]):
    """A copy of the flow whose weights and base variance follow the trained ones.

        w̄ ← d_n w̄ + (1 - d_n) w,    d_n = min(decay, (1+n)/(10+n))

    after n updates. Without that warm-up the first thousands of steps would quote the initial weights.

    Args:
        flow: the trained one. averaged: a copy of it to keep the average in, sharded as `flow` is; None makes one of a
            flow that is not sharded.
    """

    def __init__(self, flow: Flow, decay: float, averaged: Flow | None = None) -> None:
        self.decay = decay
        self.flow: Flow = (copy.deepcopy(flow) if averaged is None else averaged).eval().requires_grad_(False)
        # Collected once, since optimizers and `load_state_dict` write in place: for a small flow collecting takes a
        # twentieth of a step.
        self._averaged, self._trained = _tensors(self.flow), _tensors(flow)
        self._parts = _parts(self._trained)
        self._sharded = any(map(is_sharded, self._trained))
        # On the device, where it is known whether a step counted; in float64, in which 1 - 0.9999 keeps its digits.
        dtype = torch.float32 if flow.device.type == "mps" else torch.float64
        self._updates = torch.zeros((), device=flow.device, dtype=dtype)

    @property
    def updates(self) -> int:
        """n. Reading it waits for the device."""
        return int(self._updates)

    @updates.setter
    def updates(self, count: int) -> None:
        self._updates.fill_(count)

    @torch.no_grad()
    def update(self, moved: Tensor | bool = True) -> None:
        """Follow the trained flow after a step of its optimizer, unless that did not count: `moved`, 0-d bool."""
        n = self._updates
        weight = (1 - ((1 + n) / (10 + n)).clamp(max=self.decay)) * moved
        weight = weight.to(self._averaged[0].dtype)
        averaged, trained = self._averaged, self._trained
        if self._sharded:  # each rank averages its part; asked for each time, because FSDP may move it
            averaged, trained = [local(tensor) for tensor in averaged], [local(tensor) for tensor in trained]
        if self.decay == 0:  # a step that did not count has left the trained ones as they were
            torch._foreach_copy_(averaged, trained)
        for part in self._parts if self.decay else ():
            # Three kernels a part. `_foreach_lerp_` takes its weight from the host, or tensor by tensor.
            difference = torch._foreach_sub(trained[part], averaged[part])
            torch._foreach_mul_(difference, weight)
            torch._foreach_add_(averaged[part], difference)
        self._updates += moved


def _parts(tensors: list[Tensor]) -> list[slice]:
    """Neighbours of about `NUMBERS_AT_ONCE` numbers, or one that has more."""
    parts, start, size = [], 0, 0
    for index, tensor in enumerate(tensors):
        size += tensor.numel()
        if size >= NUMBERS_AT_ONCE or index == len(tensors) - 1:
            parts.append(slice(start, index + 1))
            start, size = index + 1, 0
    return parts


def _tensors(flow: SequenceFlow) -> list[Tensor]:
    tensors = flow.state_dict(keep_vars=True).values()
    return [tensor if is_sharded(tensor) else tensor.detach() for tensor in tensors]
