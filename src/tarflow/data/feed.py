"""What feeds training: the pixels and values of one step, from memory or a map, prepared ahead where that helps.

Every batch is a function of the data, the seed and the step (`batches.batch_indices`): each epoch is a permutation of
all images, and nothing here has a state that would have to be saved.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tarflow.data.batches import batch_indices
from tarflow.data.sets import ImageSet
from tarflow.devices import KEPT_SHARE, free_bytes, numbered

AHEAD = 4  # batches that are ready before they are asked for

Batch: TypeAlias = tuple[Tensor, Any]


class Feed:
    """The batches of a run: `batch(step)` is (pixels (B, C, H, W) uint8, what they are given) on the device.

    Args:
        images: what is learned from; where they are the middle of wide ones, a batch is of these.
        condition: of the flow, which says what they are given (`ImageSet.values`).
        batch_size, seed: of the order.
        rows: which neighbours of each batch this process is to have; all by default. Together the processes see the
            same batches, however many they are.

    On a GPU lies what takes no more than `KEPT_SHARE` of its free memory; the batches of a larger set are put together
    by a thread, in memory that is pinned, so that the host does not wait for their copies. An error there is raised by
    `batch`, never swallowed; `close` ends it. On a CPU a batch is one copy of rows, which takes less time than handing
    it over from another thread, or than torch's `DataLoader` takes for it (`benchmarks/loader.py`).
    """

    def __init__(
        self,
        images: ImageSet,
        *,
        batch_size: int,
        seed: int,
        condition: str,
        device: torch.device | str = "cpu",
        rows: slice = slice(None),
    ) -> None:
        self.device = numbered(device)
        self.batch_size, self.seed, self.rows = batch_size, seed, rows
        pixels = images.images if images.wide is None else images.wide
        self.images = pixels.to(self.device) if _fits(pixels, self.device) else pixels
        self.values = _each(lambda value: value.to(self.images.device), images.values(condition))
        self.background = self.images.device != self.device
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: dict[int, Future[Batch]] = {}  # by the step

    def __len__(self) -> int:
        """How many images are learned from."""
        return len(self.images)

    def batch(self, step: int) -> Batch:
        """The batch of a step; of the step after the last one asked for, it is waiting already."""
        if not self.background:
            return self._choose(step)
        if self._thread is None or step not in self._waiting:
            self.close()
            self._thread = ThreadPoolExecutor(1, "tarflow-feed")
        for ahead in range(step, step + AHEAD):
            if ahead not in self._waiting:
                self._waiting[ahead] = self._thread.submit(self._pinned, ahead)
        pixels, values = self._waiting.pop(step).result()
        values = _each(lambda value: value.to(self.device, non_blocking=True), values)
        return pixels.to(self.device, non_blocking=True), values

    def close(self) -> None:
        """End what runs in the background."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
            self._thread = None
            self._waiting.clear()

    def _choose(self, step: int) -> Batch:
        """The batch of a step, where the images are."""
        device = self.images.device
        chosen = batch_indices(len(self.images), self.batch_size, step, self.seed, device=device)[self.rows]
        if device.type == "cpu":
            # NumPy copies rows in this thread. torch wakes all of its own for it, which takes longer than the copy.
            pixels = torch.from_numpy(self.images.numpy()[chosen.numpy()])
        else:
            pixels = self.images[chosen]
        return pixels, _each(lambda value: value[chosen], self.values)

    def _pinned(self, step: int) -> Batch:
        pixels, values = self._choose(step)
        if self.device.type == "cuda":  # from other memory the host waits for the copy
            pixels, values = pixels.pin_memory(), _each(Tensor.pin_memory, values)
        return pixels, values


def _each(do: Callable[[Tensor], Tensor], values: Any) -> Any:
    """`do` with values that are a tensor, or with each of several; None of None."""
    if values is None or isinstance(values, tuple):
        return None if values is None else tuple(_each(do, value) for value in values)
    return do(values)


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images may lie on the device, beside what training needs there. The CPU holds them anyway."""
    free = free_bytes(device)
    return free is None or images.nbytes <= KEPT_SHARE * free
