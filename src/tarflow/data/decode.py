"""Records to arrays of one shape, here or in other processes: what streaming spends its time on.

Pillow spends half of the time for a small image in Python, so that threads gain little; processes do. They get encoded
bytes or paths and give back pixels; they hold nothing, so it does not matter how many there are or which does what.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np

from tarflow.data.assemble import read_one
from tarflow.data.errors import DataError
from tarflow.data.records import Content
from tarflow.data.value_range import ValueRange, Values

GRACE = 5.0  # seconds that a worker goes on after SIGTERM
# What ends a whole job, or warns it: see `training.interrupt`.
_OF_A_JOB = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, n)]
_LEAST = 16  # records that are worth a message to another process
KILLED = (
    "a process that decodes images was killed, perhaps for want of memory; "
    "what was saved is good: resume, with fewer workers if need be"
)
UNGUARDED = (
    "a process that decodes images could not begin (exit code {code}; what it says itself stands above): it imports "
    'the script that was started, whose work must stand under `if __name__ == "__main__":`; or set workers to 0'
)


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
    value_range: ValueRange = "full"

    def read(self, content: Content) -> Any:
        """The pixels of one record. Raises `DataError` with the reason alone, `WrongShape` where it is unlike."""
        pixels = read_one(content, self.levels, self.size, self.channels, Values(self.value_range))
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
    """`decode_rows`, in this process with 0 workers, or shared among so many.

    Each worker has a pipe of its own whose other end nobody else holds, so that its death is the end of a file, at
    whichever moment it comes. (In `concurrent.futures` workers write to one pipe, and one that is killed in the middle
    of a result leaves the reader waiting.)
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool: list[tuple[BaseProcess, Connection]] = []

    def __call__(self, contents: Sequence[Content], spec: Spec) -> tuple[Any, list[tuple[int, DataError]]]:
        """As `decode_rows`. Raises `DataError` where a worker was killed."""
        if not self.workers or len(contents) < 2 * _LEAST:
            return decode_rows(contents, spec)
        step = max(_LEAST, -(-len(contents) // self.workers))
        starts = range(0, len(contents), step)
        if not self.pool:
            self._start()
        try:
            # A worker answers only what it has read to its end, and all has been heard: nobody waits for each other.
            for start, (_, pipe) in zip(starts, self.pool, strict=False):
                pipe.send((contents[start : start + step], spec))
            results = [pipe.recv() for _, (_, pipe) in zip(starts, self.pool, strict=False)]
        except (EOFError, OSError):
            self.close()
            raise DataError(KILLED) from None
        for result in results:
            if isinstance(result, Exception):
                raise result
        bad = [
            (start + number, error) for start, (_, some) in zip(starts, results, strict=True) for number, error in some
        ]
        return np.concatenate([pixels for pixels, _ in results]), bad

    def _start(self) -> None:
        """Start the workers, at once. Raises `DataError` where they cannot begin."""
        self.pool = [_start_worker() for _ in range(self.workers)]
        for process, pipe in self.pool:
            try:
                pipe.recv()  # that it has begun
            except (EOFError, OSError):
                process.join(GRACE)
                code = process.exitcode
                self.close()
                if code is None or code < 0:
                    raise DataError(KILLED) from None
                raise DataError(UNGUARDED.format(code=code)) from None

    def close(self) -> None:
        """End the workers."""
        for _, pipe in self.pool:
            pipe.close()  # the end of what they read
        for process, _ in self.pool:
            process.join(1)
            process.kill()
            process.join()
        self.pool = []


def _start_worker() -> tuple[BaseProcess, Connection]:
    context = get_context("spawn")  # a fork of a process with threads, or a GPU, is a gamble
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs,), name="tarflow-decode", daemon=True)
    with _signals_held_back():
        process.start()
    theirs.close()
    return process, ours


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """What is started here gets no signal until `_work` knows what to do with it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_JOB)
    resource_tracker.ensure_running()  # which the first start needs, and which lets some of them through again
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_JOB)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection) -> None:
    """Say so, and decode what comes through the pipe until its other end is closed, also by the training's death.

    A signal is often sent to all processes of a job at once, and the training answers it. What it waits for is still
    delivered, so that it can save; only SIGTERM ends this process too, after a while.
    """
    for signum in _OF_A_JOB:
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: threading.Timer(GRACE, os._exit, (1,)).start())
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_A_JOB)
    try:
        pipe.send(None)
    except OSError:
        os._exit(0)
    while True:
        try:
            contents, spec = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        try:
            result: Any = decode_rows(contents, spec)
        except Exception as error:
            result = error
        try:
            pipe.send(result)
        except OSError:
            os._exit(0)
