"""Long work as an iterator of what it tells, which whoever reads it may leave at any time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
AHEAD = 2  # words that the work may be ahead of its reader: it waits then, so that nothing piles up
WAIT = 0.05  # seconds between two looks at whether the reader has left


class Left(BaseException):
    """Raised within the work where its reader has left. No `Exception`: whoever catches those means others."""


class _Told(Generic[T]):
    """A place for one thing to hand over: a value, an error, or that the work has ended."""

    def __init__(self, value: T | None = None, error: BaseException | None = None, ended: bool = False) -> None:
        self.value, self.error, self.ended = value, error, ended


def streamed(work: Callable[[Callable[[T], None]], None]) -> Iterator[T]:
    """What `work(tell)` tells, as it tells it, computed in a thread of its own.

    Closing the iterator ends the work at its next `tell`, and waits for that. An error of the work is raised here.

    >>> list(streamed(lambda tell: [tell(k) for k in range(3)]))
    [0, 1, 2]
    """
    words: queue.Queue[_Told[T]] = queue.Queue(AHEAD)
    left = threading.Event()

    def hand_over(word: _Told[T]) -> None:
        while not left.is_set():
            try:
                return words.put(word, timeout=WAIT)
            except queue.Full:
                continue
        raise Left

    def run() -> None:
        try:
            work(lambda value: hand_over(_Told(value)))
            last = _Told[T](ended=True)
        except Left:
            return
        except BaseException as error:
            last = _Told[T](error=error)
        try:
            hand_over(last)
        except Left:
            return

    thread = threading.Thread(target=run, name="tarflow play", daemon=True)
    thread.start()
    try:
        while not (word := words.get()).ended:
            if word.error is not None:
                raise word.error
            yield word.value  # type: ignore[misc]
    finally:
        left.set()
        thread.join()
