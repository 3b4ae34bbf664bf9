"""Leaving in order: signals are collected while training, and answered once everything is saved."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Training was told to stop by a signal, and saved before it did."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"{signal.Signals(signum).name}: saved at step {step}; continue with --resume")
        self.signum = signum
        self.step = step


@contextlib.contextmanager
def collect_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT instead of dying of them; a second one does what it always did."""
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        if received:
            signal.signal(signum, previous[signum])
            signal.raise_signal(signal.Signals(signum))
        received.append(signum)

    previous: dict[int, Any] = {}
    try:
        for wanted in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # only the main thread may set handlers
                previous[wanted] = signal.signal(wanted, handle)
        yield received
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
