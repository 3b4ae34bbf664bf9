"""The order in which images are seen: a seeded sampler, indexed by the step.

Batch `s` is positions [sB, (s+1)B) of the endless row of epochs, each a fresh permutation of all images. It is a
function of (size, B, step, seed) and of nothing else: no state, so resuming at a step is arithmetic, and nothing is
left over at the end of an epoch.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.seeding import seeded_permutation


def batch_indices(size: int, batch_size: int, step: int, seed: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Which of `size` images batch number `step` holds: (batch_size,) int64 on `device`, the same ones on any.

    A device gets the order of an epoch once, at its start: a copy of each batch would make the host wait for it. A
    batch may straddle two epochs (and then hold an image twice), and may be larger than `size`.

    >>> torch.cat([batch_indices(size=6, batch_size=2, step=s, seed=0) for s in range(3)]).sort().values
    tensor([0, 1, 2, 3, 4, 5])
    """
    if size < 1 or batch_size < 1 or step < 0:
        raise ValueError(f"expected size >= 1, batch_size >= 1, step >= 0; got {size}, {batch_size}, {step}")
    seed = integer("seed", seed)  # before the cache, to which True is 1
    parts = []
    position, end = step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, start = divmod(position, size)
        stop = min(size, start + end - position)
        parts.append(_epoch(size, seed, epoch, str(device))[start:stop])
        position += stop - start
    return torch.cat(parts)  # a copy, also of one part: the cached permutation must not leave this file


@functools.lru_cache(maxsize=2)  # a batch needs two at most, unless it is larger than the data
def _epoch(size: int, seed: int, epoch: int, device: str) -> Tensor:
    return seeded_permutation(size, "epoch", seed, epoch).to(device)
