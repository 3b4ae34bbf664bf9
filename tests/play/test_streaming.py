"""Work that tells how far it is: in order, with its errors, and over when its reader leaves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tarflow.play.streaming import AHEAD, streamed


def test_an_error_comes_after_what_was_told_before_it() -> None:
    def work(tell: Callable[[int], None]) -> None:
        tell(1)
        raise ValueError("broken")

    found = streamed(work)
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_work_ends_at_its_next_word_when_its_reader_leaves_and_is_waited_for() -> None:
    ended, told = threading.Event(), []

    def work(tell: Callable[[int], None]) -> None:
        try:
            for k in range(10_000):
                told.append(k)
                tell(k)
        finally:
            ended.set()

    found = streamed(work)
    assert [next(found), next(found)] == [0, 1]
    found.close()  # type: ignore[attr-defined]
    assert ended.is_set() and len(told) < 10


def test_work_waits_for_a_slow_reader() -> None:
    told = []

    def work(tell: Callable[[int], None]) -> None:
        for k in range(50):
            tell(k)
            told.append(k)

    found = streamed(work)
    assert next(found) == 0
    time.sleep(0.3)
    assert len(told) <= 1 + AHEAD
    assert list(found) == list(range(1, 50))


def test_a_reader_that_never_reads_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    for _ in range(5):
        found = streamed(lambda tell: [tell(k) for k in range(100)])
        next(found)
        del found  # as a server drops what nobody waits for
    assert not set(threading.enumerate()) - before
