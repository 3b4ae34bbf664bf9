"""Which solver is the fastest here? Measured, block by block, while the first batch is decoded.

Whether many patches at a time pay depends on how strongly a block's patches hang together, on the batch, the guidance
and the machine; no table knows that. So the first batch is decoded with the candidates in turn, under a clock, and the
quickest of each block is kept for those that follow. Every candidate is exact within its tolerance, so what is measured
is used.
"""

from __future__ import annotations

import dataclasses
import os
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tarflow import storage
from tarflow.model.block import Block
from tarflow.model.flow import TarFlow, read_json
from tarflow.sampling.captured import Captured
from tarflow.sampling.decode import Progress, Solve, invert, latents_of
from tarflow.sampling.guidance import Guidance, guided_rows, predictor
from tarflow.sampling.jacobi import Jacobi
from tarflow.sampling.sequential import Solution, sequential

STRIDE = 4  # windows that are tried differ by this factor
SLACK = 2.0  # the first of them is the largest whose evaluation takes no longer than that many of a single patch
PROBES = 5  # timings of one thing, whose median counts
ENOUGH = 0.25  # share of the patches after which it is clear how long an attempt will take
PATIENCE = 1.25  # an attempt is broken off when that will be so many times as long as the best one took


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one block is decoded, and what that took when it was measured.

    Attributes:
        solver: "sequential" or "jacobi".
        window: patches that "jacobi" evaluates at once.
        seconds: for the batch that was measured; of "sequential", told from a few steps.
        sequential_seconds: the same of the sequential solver, to compare with.
    """

    solver: Literal["sequential", "jacobi"]
    window: int | None = None
    seconds: float = 0.0
    sequential_seconds: float = 0.0

    def __post_init__(self) -> None:
        known = self.solver == "jacobi" or (self.solver == "sequential" and self.window is None)
        if not known or not (self.window is None or self.window >= 1):
            raise ValueError(
                f"solver: expected 'sequential', or 'jacobi' and a window, got {self.solver} {self.window}"
            )

    def __str__(self) -> str:
        return self.solver if self.window is None else f"{self.solver} {self.window}"

    def solve(self, tol: float | None) -> Solve:
        """The solver as a function of `predict` and z."""
        return sequential if self.solver == "sequential" else Jacobi(self.window, tol)


class Calibration:
    """Which solver decodes each block of one flow fastest, for the batch sizes and guidances it was measured for.

    `tarflow.sample(..., calibration=...)` reads it and fills it; `load` and `save` keep it beside a checkpoint, as
    `tarflow sample` does in RUN/solvers.json. Without one, a measurement lasts as long as the process and the weights.

    >>> import tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> calibration = tarflow.Calibration()
    >>> x = tarflow.sample(flow, 2, calibration=calibration)
    >>> [len(choices) for choices in calibration.choices.values()]  # one a block
    [2]
    """

    def __init__(self, choices: dict[str, tuple[Choice, ...]] | None = None) -> None:
        self.choices = dict(choices or {})

    @classmethod
    def load(cls, path: str | Path, weights: str) -> Calibration:
        """What `save` wrote for the same `weights`; empty where there is no such file, or it is of other weights."""
        path = Path(path)
        if not path.is_file():
            return cls()
        try:
            stored = read_json(path)
            if stored["weights"] != weights:
                return cls()
            return cls({key: tuple(Choice(**c) for c in choices) for key, choices in stored["choices"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls()  # a measurement, not data: it is simply made again

    def save(self, path: str | Path, weights: str) -> None:
        """Write the choices, with a name for the weights that they were measured with."""
        choices = {key: [dataclasses.asdict(c) for c in choices] for key, choices in self.choices.items()}
        storage.write_json(Path(path), {"weights": weights, "choices": choices})


def calibration_key(flow: TarFlow, batch: int, guidance: Guidance | None, tol: float | None) -> str:
    """What a choice depends on: the machine, the precision, the batch, the guidance and the tolerance."""
    device = flow.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    guided = "no guidance" if guidance is None or guidance.scale == 0 else repr(guidance)
    tolerance = "default tolerance" if tol is None else f"tolerance {tol:g}"
    autocast = ", autocast" if torch.is_autocast_enabled(device.type) else ""
    dtype = str(flow.blocks[0].product_dtype).removeprefix("torch.")
    return f"{where}, {threads}, torch {torch.__version__}, {dtype}{autocast}, batch {batch}, {guided}, {tolerance}"


_REMEMBERED: weakref.WeakKeyDictionary[TarFlow, tuple[int, Calibration]] = weakref.WeakKeyDictionary()


def remembered(flow: TarFlow) -> Calibration:
    """What was measured for this flow in this process, as long as its weights are the same.

    Timings and nothing else: no sample depends on it beyond the tolerance of the solvers.
    """
    # What was made in inference mode counts no versions. A choice of weights that changed is slower, and not wrong.
    version = sum(0 if parameter.is_inference() else parameter._version for parameter in flow.parameters())
    known = _REMEMBERED.get(flow)
    if known is None or known[0] != version:
        known = _REMEMBERED[flow] = (version, Calibration())
    return known[1]


def calibrated_decode(
    flow: TarFlow,
    noise: Tensor,
    y: Tensor | None,
    guidance: Guidance | None,
    tol: float | None,
    choices: list[Choice],
    progress: Progress | None = None,
    captured: Captured | None = None,
) -> Iterator[Solution]:
    """`decode` of the first batch: yields the same, and appends the fastest solver of each block to `choices`."""
    x = latents_of(flow, noise)
    for block in reversed(flow.blocks):
        choice, solution = fastest(block, x, y, guidance, tol, captured)
        if solution is None:
            solution = invert(block, x, y, guidance, choice.solve(tol), progress, captured)
        elif progress is not None:
            progress(x.shape[1], x.shape[1])
        choices.append(choice)
        x = solution.x
        yield solution


def fastest(
    block: Block,
    z: Tensor,
    y: Tensor | None,
    guidance: Guidance | None,
    tol: float | None = None,
    captured: Captured | None = None,
) -> tuple[Choice, Solution | None]:
    """The solver that decodes this block fastest, and its solution unless that is still to be computed.

    The arguments are those of `invert`. The sequential solver is timed by a few steps. The parallel one decodes the
    block, first with a window that costs little more to evaluate than a patch, then with larger ones as long as that is
    quicker, or with a smaller one; an attempt that falls behind the best is broken off.
    """
    last = z.shape[1] - 1
    if last < 2:  # nothing to be evaluated at once
        return Choice("sequential"), None
    stepwise, found = _sequential_seconds(block, z, y, guidance, captured or Captured())
    best = Choice("sequential", None, stepwise, stepwise)

    def attempt(window: int) -> bool:
        """Whether the parallel solver with this window is the best so far."""
        nonlocal best, found
        clock = _Clock(best.seconds, last)
        try:
            solution = invert(block, z, y, guidance, Jacobi(window, tol), clock.check, captured)
        except _TooSlow:
            return False
        if clock.seconds() >= best.seconds:
            return False
        best, found = Choice("jacobi", window, clock.seconds(), stepwise), solution
        return True

    window = larger = _first_window(block, z, y, guidance)
    attempt(window)
    while larger < last:
        larger = min(last, larger * STRIDE)
        if not attempt(larger):
            break
    if best.window in (None, window) and window > STRIDE:
        attempt(window // STRIDE)
    return best, found


class _TooSlow(Exception):
    """An attempt that cannot become the fastest any more."""


class _Clock:
    """Breaks an attempt off when it has taken, or is bound to take, longer than the best so far."""

    def __init__(self, limit: float, last: int) -> None:
        self.limit, self.last, self.started = limit, last, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def check(self, done: int, total: int) -> None:
        """As a block reports its progress: patches that are final, of how many."""
        spent, share = self.seconds(), done / self.last
        if spent > self.limit or (share > ENOUGH and spent / share > PATIENCE * self.limit):
            raise _TooSlow


@torch.no_grad()
def _first_window(block: Block, z: Tensor, y: Tensor | None, guidance: Guidance | None) -> int:
    """The largest window, of powers of STRIDE and the whole, that is evaluated in SLACK times the time of a patch."""
    last = z.shape[1] - 1
    predict = predictor(block, y, guidance, block.new_cache(guided_rows(guidance, len(z))))
    z = block.reorder(z)
    single, window = _median_seconds(lambda: predict(z[:, :1], 0), z.device), min(STRIDE, last)
    while window < last:
        wider = min(last, window * STRIDE)
        if _median_seconds(lambda wider=wider: predict(z[:, :wider], 0), z.device) > SLACK * single:  # type: ignore[misc]
            break
        window = wider
    return window


@torch.no_grad()
def _sequential_seconds(
    block: Block, z: Tensor, y: Tensor | None, guidance: Guidance | None, captured: Captured
) -> tuple[float, Solution | None]:
    """The time of the sequential solver, and its solution where it had to be computed for that.

    Told from a few steps at the start and as many at the end, where they see the whole cache. On a GPU, where a step is
    captured and a few of them say nothing, all are taken; capturing, which later batches are spared, does not count.
    """
    if z.device.type == "cuda":
        _wait(z.device)
        started = time.perf_counter() - captured.seconds
        solution = invert(block, z, y, guidance, sequential, None, captured)
        _wait(z.device)
        return time.perf_counter() - started - captured.seconds, solution
    last = z.shape[1] - 1
    predict = predictor(block, y, guidance, block.new_cache(guided_rows(guidance, len(z))))
    z = block.reorder(z)

    def step(place: int) -> Solution:
        """What the solver does for one patch, at a place of the sequence."""
        return sequential(lambda x, _: predict(x, place), z[:, place : place + 2])

    ends = [_median_seconds(lambda place=place: step(place), z.device) for place in (0, last - 1)]  # type: ignore[misc]
    return last * sum(ends) / 2, None


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(PROBES):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[PROBES // 2]


def _wait(device: torch.device) -> None:
    """Until everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
