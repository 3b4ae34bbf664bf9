"""Random numbers as a function of a key: a generator for (seed, purpose, step, …), with no state to save.

A key is hashed, not added up: with a seed such as seed + step, step 1 of seed 0 would be step 0 of seed 1.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def seeded_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that is a function of `key`.

    >>> a, b = (torch.randn(3, generator=seeded_generator(0, "training", 7)) for _ in range(2))
    >>> torch.equal(a, b)
    True
    """
    return torch.Generator(device).manual_seed(int.from_bytes(_digest(key), "big"))


def seeded_normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Standard normal numbers, float64 on the CPU, that are a function of `key`.

    torch's CPU generator keeps 32 bits of its seed, so that of 50,000 images two would be the same with a chance of a
    quarter. The sum of two independent draws, over √2, is standard normal too, and keeps 64.
    """
    digest = _digest(key)
    halves = [torch.Generator().manual_seed(int.from_bytes(half, "big")) for half in (digest[:4], digest[4:])]
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for generator in halves)
    return (first + second) * 0.5**0.5


def _digest(key: tuple[int | str, ...]) -> bytes:
    return hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
