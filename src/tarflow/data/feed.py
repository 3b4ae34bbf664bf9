"""What feeds training: the pixels and labels of one step, from memory, a memory map or a stream, prepared ahead.

Every batch is a function of the data, the seed and the step. Where it comes from memory its order is that of
`batches.batch_indices`, and of a stream that of `stream_order`. Nothing here has a state that would have to be saved.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from tarflow.data.batches import batch_indices
from tarflow.data.decode import Decoder, WrongShape
from tarflow.data.errors import DataError
from tarflow.data.records import Content
from tarflow.data.sets import ImageSet
from tarflow.data.stream_order import Segment, StreamOrder
from tarflow.data.streamed import StreamedSet
from tarflow.devices import KEPT_SHARE, free_bytes, numbered

AHEAD = 4  # batches that are ready before they are asked for

Batch: TypeAlias = tuple[Tensor, Tensor | None]


class Feed:
    """The batches of a run: `batch(step)` is (pixels (B, C, H, W) uint8, labels (B,) int64 or None) on the device.

    Args:
        images: what is learned from. labelled: whether labels are wanted, where there are any.
        batch_size, seed: of the order.
        rows: which neighbours of each batch this process is to have; all by default. Together the processes see the
            same batches, however many they are.
        window: images that a stream shuffles together (`stream_order`). workers: processes that decode a stream.

    A stream is decoded ahead of the training, in a thread and its workers. On a GPU lies what takes no more than
    `KEPT_SHARE` of its free memory; the batches of a larger set are put together by a thread, in memory that is pinned,
    so that the host does not wait for their copies. An error there is raised by `batch`, never swallowed; `close` ends
    them.
    """

    def __init__(
        self,
        images: ImageSet | StreamedSet,
        *,
        batch_size: int,
        seed: int,
        labelled: bool,
        device: torch.device | str = "cpu",
        rows: slice = slice(None),
        window: int = 8192,
        workers: int = 0,
    ) -> None:
        self.device = numbered(device)
        self.batch_size, self.seed, self.rows, self.count = batch_size, seed, rows, len(images)
        self.labels = images.labels if labelled else None
        self.skipped: dict[str, str] = {}  # name and reason of the bad records met so far, in this process
        self._said = 0  # how many of those `newly_skipped` has given
        self._ahead: _Ahead | None = None
        if isinstance(images, StreamedSet):
            self._stream: _Stream | None = _Stream(images, window, seed, Decoder(workers), self.skipped)
            self.background = workers > 0
        else:
            self._stream = None
            self.images = images.images.to(self.device) if _fits(images.images, self.device) else images.images
            self.labels = None if self.labels is None else self.labels.to(self.images.device)
            self.background = self.images.device != self.device

    def __len__(self) -> int:
        """How many images are learned from."""
        return self.count

    def batch(self, step: int) -> Batch:
        """The batch of a step; of the step after the last one asked for, it is waiting already."""
        if not self.background:
            return self._to_device(self._make(step))
        if self._ahead is None or self._ahead.next_step != step:
            self._stop_ahead()
            self._ahead = _Ahead(self._make, step)
        return self._to_device(self._ahead.take())

    def newly_skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the bad records met since this was last asked."""
        found = list(self.skipped.items())[self._said :]
        self._said += len(found)
        return found

    def close(self) -> None:
        """End what runs in the background."""
        self._stop_ahead()
        if self._stream is not None:
            self._stream.decoder.close()

    def _make(self, step: int) -> Batch:
        pixels, labels = self._choose(step)
        if self.device.type == "cuda" and pixels.device.type == "cpu":  # from other memory the host waits for the copy
            pixels, labels = pixels.pin_memory(), None if labels is None else labels.pin_memory()
        return pixels, labels

    def _choose(self, step: int) -> Batch:
        """The batch of a step, where the images are."""
        if self._stream is not None:
            pixels, indices = self._stream.batch(self.batch_size, step, self.rows)
            return pixels, None if self.labels is None else self.labels[indices]
        device = self.images.device
        chosen = batch_indices(len(self.images), self.batch_size, step, self.seed, device=device)[self.rows]
        if self.images.device.type == "cpu":
            # NumPy copies rows in this thread. torch wakes all of its own for it, which takes longer than the copy.
            pixels = torch.from_numpy(self.images.numpy()[chosen.numpy()])
        else:
            pixels = self.images[chosen]
        return pixels, None if self.labels is None else self.labels[chosen]

    def _to_device(self, batch: Batch) -> Batch:
        pixels, labels = batch
        labels = None if labels is None else labels.to(self.device, non_blocking=True)
        return pixels.to(self.device, non_blocking=True), labels

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None


def _fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images may lie on the device, beside what training needs there. The CPU holds them anyway."""
    free = free_bytes(device)
    return free is None or images.nbytes <= KEPT_SHARE * free


class _Stream:
    """Batches of a `StreamedSet`: reads the groups of a window, still encoded, and decodes the records of a batch."""

    def __init__(self, images: StreamedSet, window: int, seed: int, decoder: Decoder, skipped: dict[str, str]) -> None:
        self.images, self.decoder, self.skipped = images, decoder, skipped
        starts = images.starts
        sizes = (starts[1:] - starts[:-1]).tolist()
        self.used = [number for number, size in enumerate(sizes) if size]  # the others are held out
        self.starts = starts[self.used].tolist()
        first = torch.tensor([0, *(group.rows for group in images.groups)], device="cpu", dtype=torch.int64).cumsum(0)
        self.first = first[self.used].tolist()
        self.order = StreamOrder([sizes[number] for number in self.used], window, seed)
        self.held: dict[int, Sequence[Content]] = {}

    def batch(self, batch_size: int, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Pixels (n, C, H, W), and which images of the set they are."""
        segments = self.order.batch(batch_size, step, rows)
        self._hold(segments)
        places = [(int(group), int(row)) for segment in segments for group, row in segment.places]
        pixels, bad = self.decoder([self._content(group, row) for group, row in places], self.images.spec)
        result = torch.from_numpy(pixels)
        for number, error in bad:
            places[number], result[number] = self._instead(*places[number], error)
        indices = torch.tensor([self.starts[group] + row for group, row in places], device="cpu", dtype=torch.int64)
        return self.images.out(result), indices

    def _hold(self, segments: Sequence[Segment]) -> None:
        """Have in memory what the windows of these segments need, and nothing else: two windows at most."""
        wanted = {group for segment in segments for group in segment.groups}
        needed = {int(group) for segment in segments for group in segment.places[:, 0].unique()}
        for group in self.held.keys() - wanted:
            del self.held[group]
        for group in sorted(needed - self.held.keys()):
            self.held[group] = self.images.groups[self.used[group]].read()

    def _content(self, group: int, row: int) -> Content:
        record = int(self.images.rows[self.starts[group] + row])
        return self.held[group][record - self.first[group]]

    def _instead(self, group: int, row: int, error: DataError) -> tuple[tuple[int, int], Tensor]:
        """What is seen in place of a bad record: the next good one of its group, so that no state is needed."""
        size = self.order.sizes[group]
        for other in range(row, row + size):
            index = self.starts[group] + other % size
            if other > row:
                try:
                    pixels = self.images.spec.read(self._content(group, other % size))
                    return (group, other % size), torch.tensor(pixels, device="cpu", dtype=torch.uint8)
                except DataError as found:
                    error = found
            if isinstance(error, WrongShape) or not self.images.skip_bad:
                raise self.images.refusal(index, error)
            self.skipped.setdefault(self.images.names[index], str(error))
        name = self.images.names[self.starts[group]]
        raise DataError(f"{self.images.source}: none of the {size} images from {name} on can be read: {error}")


class _Ahead:
    """Makes batches in a thread, some before they are asked for."""

    def __init__(self, make: Callable[[int], Batch], step: int) -> None:
        self.next_step = step
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make, step), name="tarflow-feed", daemon=True)
        self._thread.start()

    def take(self) -> Batch:
        """The next batch; raises what went wrong while it was made."""
        while True:
            try:
                found = self._ready.get(timeout=1)
                break
            except queue.Empty:
                if not self._thread.is_alive() and self._ready.empty():
                    raise DataError("the thread that reads the data is gone; resume") from None
        if isinstance(found, BaseException):
            raise found
        self.next_step += 1
        return found

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self, make: Callable[[int], Batch], step: int) -> None:
        while not self._stopped.is_set():
            try:
                made: Batch | BaseException = make(step)
            except BaseException as error:
                made = error
            while not self._stopped.is_set():
                try:
                    self._ready.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(made, BaseException):
                return
            step += 1
