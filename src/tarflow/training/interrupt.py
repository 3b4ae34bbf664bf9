"""Leaving in order: signals are collected while training, and answered once everything is saved.

SIGTERM, SIGINT (Ctrl-C), SIGHUP (a closed terminal) and SIGUSR1 (the warning that Slurm can be asked for) all mean:
save after this step, and leave. A signal to a whole job reaches a process more than once, from the scheduler and from
its launcher, and the ranks do not leave at the same moment. So a repetition ends nothing. A person insists by SIGINT,
`WAVE_SECONDS` after the first signal or later; a scheduler does by SIGKILL.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

WAVE_SECONDS = 5.0  # what comes within it belongs to one wave, on a busy machine too
NAMES = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")


class Interrupted(Exception):
    """A signal ended the training, after a checkpoint was saved."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"{signal.Signals(signum).name}: saved at step {step}; continue with --resume")
        self.signum = signum
        self.step = step


class Stop:
    """Whether this process has to stop: a signal came, or the launcher that started it is gone.

    Who kills a launcher (`torchrun`) by SIGKILL leaves its processes behind, which no signal reaches: to them it is as
    if their terminal were closed. A process that belongs to no job may outlive the one that started it.
    """

    def __init__(self) -> None:
        self.received = 0
        self.since = 0.0  # when the first signal came
        self.launcher = os.getppid() if "WORLD_SIZE" in os.environ and os.name == "posix" else None

    def __call__(self) -> int:
        """The number of the first signal, 0 where there was none."""
        if not self.received and self.launcher is not None and os.getppid() != self.launcher:
            self.note(signal.SIGHUP)
        return self.received

    def note(self, signum: int) -> None:
        """Remember a signal, unless one came before."""
        if not self.received:
            self.received, self.since = signum, time.monotonic()


class _Handler:
    """The handler of one signal during the training and, where `after` is set, for the rest of the wave after it."""

    def __init__(self, stop: Stop, before: Any) -> None:
        self.stop, self.before, self.after = stop, before, False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        repeats = time.monotonic() - self.stop.since < WAVE_SECONDS
        if not self.stop.received and not self.after:
            self.stop.note(signum)
        elif not repeats and (self.after or signum == signal.SIGINT):
            signal.signal(signum, self.before)
            signal.raise_signal(signal.Signals(signum))


_program_ends = False  # after a training that was interrupted


def leave_when_interrupted() -> None:
    """Have the rest of a wave of signals change nothing on the way out, the exit code neither.

    For a program that ends where its training was interrupted. Anybody else has the old handlers back at once.
    """
    global _program_ends
    _program_ends = True
    atexit.register(_ignore)  # the interpreter gives up its handlers before it ends


def _ignore() -> None:
    for signum in _numbers():
        if isinstance(signal.getsignal(signum), _Handler):
            signal.signal(signum, signal.SIG_IGN)


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


@contextlib.contextmanager
def collect_signals() -> Iterator[Stop]:
    """Collect the signals that end a training instead of dying of them; see the first lines of this file.

    SIGHUP and SIGUSR1 are left to whom they belong: to `nohup`, which ignores them, or to a handler of the caller's.
    """
    stop = Stop()
    handlers: dict[int, _Handler] = {}
    for signum in _numbers():
        before = signal.getsignal(signum)
        if before is not signal.SIG_DFL and signum not in (signal.SIGTERM, signal.SIGINT):
            continue
        handler = _Handler(stop, signal.SIG_DFL if before is None else before)
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            signal.signal(signum, handler)
            handlers[signum] = handler
    try:
        yield stop
    except Interrupted as interrupted:
        stop.note(interrupted.signum)  # which came to another rank, and is still to come here
        raise
    finally:
        for signum, handler in handlers.items():
            handler.after = bool(stop.received) and _program_ends
            if not handler.after:
                signal.signal(signum, handler.before)
