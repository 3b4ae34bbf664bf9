"""Random numbers as a function of a key: a generator for (seed, purpose, step, …), with no state to save.

A key is hashed, not added up: with a seed such as seed + step, step 1 of seed 0 would be step 0 of seed 1. An integer
of any kind stands for its value: `numpy.int64(7)` is 7.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from tarflow.fields import integer


def seeded_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that is a function of `key`: integers, and at most one text, which is the purpose.

    Raises ValueError where a key holds anything else.

    >>> a, b = (torch.randn(3, generator=seeded_generator(0, "training", 7)) for _ in range(2))
    >>> torch.equal(a, b)
    True
    """
    return torch.Generator(device).manual_seed(int.from_bytes(_digest(key), "big"))


def seeded_permutation(size: int, purpose: str, *key: int) -> Tensor:
    """A permutation of `range(size)`, (size,) int64, that is a function of its arguments.

    `purpose` keeps apart the permutations that one seed is used for.
    """
    generator = seeded_generator(purpose, *key)
    return torch.randperm(size, generator=generator, device=generator.device, dtype=torch.int64)


def seeded_normal(shape: tuple[int, ...], *key: int | str) -> Tensor:
    """Standard normal numbers, float64 on the CPU, that are a function of `key`.

    torch's CPU generator keeps 32 bits of its seed, so that of 50,000 images two would be the same with a chance of a
    quarter. The sum of two independent draws, over √2, is standard normal too, and keeps 64.
    """
    digest = _digest(key)
    cpu = torch.device("cpu")
    halves = [torch.Generator(cpu).manual_seed(int.from_bytes(half, "big")) for half in (digest[:4], digest[4:])]
    first, second = (torch.randn(shape, generator=each, device=cpu, dtype=torch.float64) for each in halves)
    return (first + second) * 0.5**0.5


def _digest(key: tuple[int | str, ...]) -> bytes:
    # By value: the same number of another type would otherwise be another seed, without a word.
    if sum(isinstance(part, str) for part in key) > 1:  # one names the purpose, so another is a seed that is no number
        raise ValueError(f"seed: expected a whole number, got a text in {key!r}")
    parts = tuple(str(part) if isinstance(part, str) else integer("seed", part) for part in key)
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
