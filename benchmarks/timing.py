"""Interleaved timings: each side in turn, again and again, so that a slow minute of the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.rates import synchronise

Run = Callable[[], Any]


class Budget:
    """How long a whole benchmark may take, from its making on; without a limit, as long as it takes."""

    def __init__(self, minutes: float | None = None) -> None:
        self._deadline = float("inf") if minutes is None else time.perf_counter() + 60 * minutes

    def allows(self, seconds: float = 0.0) -> bool:
        """Whether something that takes `seconds` would be done in time."""
        return time.perf_counter() + seconds <= self._deadline


def timed(run: Run, device: torch.device) -> tuple[Any, float]:
    """What `run` returns, and the seconds until the device is done with it."""
    synchronise(device)
    start = time.perf_counter()
    result = run()
    synchronise(device)
    return result, time.perf_counter() - start


def interleave(sides: Mapping[str, Run], pairs: int, device: torch.device, budget: Budget) -> dict[str, list[float]]:
    """Seconds of every side, `pairs` times each, in turn: a, b, a, b, ….

    The first round is made in any case; a later one only where the budget allows what the slowest so far took.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(pairs):
        if turn and not budget.allows(sum(max(times) for times in seconds.values())):
            break
        for name, run in sides.items():
            seconds[name].append(timed(run, device)[1])
    return seconds


def summary(seconds: list[float], scale: float = 1.0) -> dict[str, Any]:
    """All timings, times `scale` where a part was timed and the whole is wanted; their best, median and spread.

    The spread is the worst over the best.
    """
    scaled = [scale * value for value in seconds]
    best, worst = min(scaled), max(scaled)
    return {"seconds": scaled, "best": best, "median": statistics.median(scaled), "spread": worst / best}
