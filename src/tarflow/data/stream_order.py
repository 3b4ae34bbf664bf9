"""The order in which a streamed set is seen: shuffled, and a function of (seed, epoch) that needs no state.

A set that does not fit into memory is read in groups (row groups of Parquet, or some hundred files of a folder), and a
group costs as much for one image as for all. So an epoch goes through the groups in a seeded order, takes as many
neighbours in it as make up a *window* of some thousand images, and permutes the images of a window together:

    epoch e      groups in the order seeded_permutation(G, seed, e)
    window w     groups of that order, until they have `window` images
    position p   of the epoch lies in window w at place i: image seeded_permutation(|w|, seed, e, w)[i] of the window

Where a batch begins is arithmetic, so resuming at any step is exact, on any number of processes. What it costs: two
images of one group are seen within one window of each other, in every epoch. Shards whose neighbours are alike (sorted
by class) want a larger window, which costs memory in proportion. A shuffle buffer mixes no better, and has a state.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.data.batches import seeded_permutation


@dataclass(frozen=True)
class Segment:
    """Neighbours of a batch that lie in one window.

    Attributes:
        window: (epoch, number of the window in it).
        groups: of the window, in the order of the epoch.
        places: (n, 2) int64, for each image its group and its row in that group.
    """

    window: tuple[int, int]
    groups: tuple[int, ...]
    places: Tensor


class StreamOrder:
    """The endless row of epochs over groups of `sizes` images."""

    def __init__(self, sizes: Sequence[int], window: int, seed: int) -> None:
        if not sizes or min(sizes) < 1 or window < 1:
            raise ValueError(f"expected groups of at least one image and a window >= 1, got {sizes} and {window}")
        self.sizes, self.window, self.seed = tuple(sizes), window, seed
        self.total = sum(sizes)
        self._epochs: dict[int, tuple[list[tuple[int, ...]], list[int]]] = {}
        self._windows: dict[tuple[int, int], Tensor] = {}

    def batch(self, batch_size: int, step: int, rows: slice = slice(None)) -> list[Segment]:
        """Images number `step · batch_size …` of the endless row; of these the neighbours `rows`, all by default.

        >>> order = StreamOrder([2, 3], window=2, seed=0)
        >>> [len(segment.places) for segment in order.batch(batch_size=5, step=7)]
        [2, 3]
        """
        begin, end, stride = rows.indices(batch_size)
        if stride != 1 or batch_size < 1 or step < 0:
            raise ValueError(f"expected batch_size >= 1, step >= 0 and neighbours, got {batch_size}, {step}, {rows}")
        position, stop = step * batch_size + begin, step * batch_size + end
        found = []
        while position < stop:
            epoch, place = divmod(position, self.total)
            groups, ends = self._plan(epoch)
            number = bisect.bisect_right(ends, place)
            first = ends[number - 1] if number else 0
            last = min(ends[number], place + stop - position)
            places = self._order(epoch, number)[place - first : last - first]
            found.append(Segment((epoch, number), groups[number], places))
            position += last - place
        return found

    def _plan(self, epoch: int) -> tuple[list[tuple[int, ...]], list[int]]:
        """The groups of each window of an epoch, and where each window ends."""
        if epoch not in self._epochs:
            order = seeded_permutation(len(self.sizes), "groups", self.seed, epoch).tolist()
            windows = list(self._cut(order))
            ends = list(itertools.accumulate(sum(self.sizes[g] for g in window) for window in windows))
            _keep_two(self._epochs)
            self._epochs[epoch] = windows, ends
        return self._epochs[epoch]

    def _cut(self, order: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Neighbours that make up a window. What is left, and is less than half of one, goes with the last."""
        ends = list(itertools.accumulate(self.sizes[group] for group in order))
        start = 0
        while start < len(order):
            before = ends[start - 1] if start else 0
            stop = min(bisect.bisect_left(ends, before + self.window) + 1, len(order))
            if 2 * (self.total - ends[stop - 1]) < self.window:
                stop = len(order)
            yield tuple(order[start:stop])
            start = stop

    def _order(self, epoch: int, number: int) -> Tensor:
        """(group, row) of every image of a window, in the order in which they are seen."""
        key = (epoch, number)
        if key not in self._windows:
            groups = self._plan(epoch)[0][number]
            sizes = torch.tensor([self.sizes[group] for group in groups], device="cpu", dtype=torch.int64)
            owners = torch.tensor(groups, device="cpu", dtype=torch.int64).repeat_interleave(sizes)
            rows = torch.cat([torch.arange(int(size), device="cpu", dtype=torch.int64) for size in sizes])
            places = torch.stack([owners, rows], dim=1)
            _keep_two(self._windows)
            self._windows[key] = places[seeded_permutation(len(places), "window", self.seed, epoch, number)]
        return self._windows[key]


def _keep_two(cache: dict[Any, Any]) -> None:
    """Make room for a second entry: a batch straddles two windows, or epochs, at most unless it is larger than one."""
    while len(cache) > 1:
        del cache[next(iter(cache))]
