"""Records to arrays of one shape, here or in other processes: what streaming spends its time on.

Pillow spends half of the time for a small image in Python, so that threads gain little; processes do. They get encoded
bytes or paths and give back pixels; they hold nothing, so it does not matter how many there are or which does what.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np

from tarflow.data.assemble import read_one
from tarflow.data.errors import DataError
from tarflow.data.records import Content

GRACE = 5.0  # seconds that a worker goes on after SIGTERM
_LEAST = 16  # records that are worth a message to another process


class WrongShape(DataError):
    """An image unlike the others, which skipping would not make right: the size or the channels must be given."""


@dataclass(frozen=True)
class Spec:
    """What records become: (C, H, W) uint8 of `shape`.

    `size` and `channels` are as the user gave them: with None an image must be of that shape already.
    """

    shape: tuple[int, int, int]
    levels: int
    size: tuple[int, int] | None
    channels: int | None

    def read(self, content: Content) -> Any:
        """The pixels of one record. Raises `DataError` with the reason alone, `WrongShape` where it is unlike."""
        pixels = read_one(content, self.levels, self.size, self.channels)
        channels, height, width = self.shape
        if pixels.shape[1:] != (height, width):
            found = "x".join(map(str, pixels.shape[1:]))
            raise WrongShape(f"is {found}, and the first images are {height}x{width}: give an image size")
        if len(pixels) > channels:
            raise WrongShape("is in colour, and the first images are grey: give the number of channels")
        return pixels


def decode_rows(contents: Sequence[Content], spec: Spec) -> tuple[Any, list[tuple[int, DataError]]]:
    """The pixels (n, C, H, W) of all, and which of them are bad, with the reason; those are zero."""
    pixels = np.zeros((len(contents), *spec.shape), np.uint8)
    bad = []
    for number, content in enumerate(contents):
        try:
            pixels[number] = spec.read(content)  # grey is repeated where the others are RGB
        except DataError as error:
            bad.append((number, error))
    return pixels, bad


class Decoder:
    """`decode_rows`, in this process with 0 workers, or shared among so many."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool: ProcessPoolExecutor | None = None

    def __call__(self, contents: Sequence[Content], spec: Spec) -> tuple[Any, list[tuple[int, DataError]]]:
        """As `decode_rows`. Raises `DataError` where a worker was killed."""
        if not self.workers or len(contents) < 2 * _LEAST:
            return decode_rows(contents, spec)
        if self.pool is None:  # spawned: a fork of a process with threads, or a GPU, is a gamble
            self.pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"), initializer=_begin_worker)
        step = max(_LEAST, -(-len(contents) // self.workers))
        starts = range(0, len(contents), step)
        try:
            jobs: list[Future[Any]] = [self.pool.submit(decode_rows, contents[k : k + step], spec) for k in starts]
            results = [job.result() for job in jobs]
        except BrokenProcessPool:
            raise DataError(
                "a process that decodes images was killed, perhaps for want of memory; "
                "what was saved is good: resume, with fewer workers if need be"
            ) from None
        bad = [
            (start + number, error) for start, (_, some) in zip(starts, results, strict=True) for number, error in some
        ]
        return np.concatenate([pixels for pixels, _ in results]), bad

    def close(self) -> None:
        """End the workers."""
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)
            self.pool = None


def _begin_worker() -> None:
    """A worker leaves Ctrl-C to the training process, and ends when that does, also by `kill -9`.

    SIGTERM is often sent to all processes of a job at once: what the training waits for is still delivered, so that it
    can save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: threading.Timer(GRACE, os._exit, (1,)).start())
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
