"""Tensors that follow from a config alone: no buffers, which a checkpoint would hold or a sharded copy would lack."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

MOST_KEPT = 128  # entries, of as many shapes, orders, devices and dtypes
_KEPT: dict[Hashable, tuple[Tensor, ...]] = {}


def constants(key: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What `make` gives, made once for a key, in no mode of the caller's: training may follow on inference mode."""
    if key in _KEPT:
        return _KEPT[key]
    with torch.inference_mode(False), torch.no_grad():
        made = make()
    if all(type(tensor) is Tensor for tensor in made):  # what a tracer makes (torch.export) has no numbers in it
        if len(_KEPT) >= MOST_KEPT:
            _KEPT.clear()
        _KEPT[key] = made
    return made
