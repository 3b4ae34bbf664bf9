"""The fastest solver of each block: measured while the first batch is decoded.

Whether many patches at a time pay depends on how strongly a block's patches hang together, on the batch, the guidance
and the machine; no table knows that. So the first batch is decoded with the candidates in turn, under a clock, and the
quickest of each block is kept for those that follow. Every candidate is exact within its tolerance, so what is measured
is used.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.calibration import Calibration, Choice, calibration_key, remembered
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.jacobi import Jacobi, check_options
from tarflow.sampling.sequential import Sequential, sequential
from tarflow.sampling.solver import Predict, Solution, Solver

WINDOW_FACTOR = 4  # between windows that are tried
WIDE_EVALUATION = 2.0  # evaluations of one patch that one of the first window that is tried takes at most
PROBES = 5  # timings of one thing, whose median counts
EARLIEST_SHARE = 0.25  # of the patches, after which it is clear how long an attempt will take
MEASURING_SHARE = 0.04  # of the time of all batches: what measuring may cost on a CPU, where it is no part of it
LEAST_STEPS = 6.0  # of the sequential solver that measuring takes at least; where less may be spent, nothing is tried
HOPELESS = 1.25  # an attempt is broken off when that will be so many times as long as the best one took


@dataclass(frozen=True)
class Auto(Solver):
    """For each block the solver that was the fastest when the first batch of this size was decoded.

    Attributes:
        calibration: what was measured before, and where it puts what it measures; None remembers it for the flow, its
            present weights and this process.
        tol: tolerance of the solutions, as of `Jacobi`.
    """

    calibration: Calibration | None = None
    tol: float | None = None

    def __post_init__(self) -> None:
        check_options(None, self.tol)
        if not (self.calibration is None or isinstance(self.calibration, Calibration)):
            raise ValueError(f"calibration: expected a tarflow.Calibration or None, got {self.calibration!r}")

    def solve(self, predict: Predict, z: Tensor) -> Solution:
        return _Measured(self.tol, math.inf, lambda _: None).solve(predict, z)

    def by_block(self, flow: SequenceFlow, guidance: Guidance | None, batch: int, batches: float) -> list[Solver]:
        known = remembered(flow) if self.calibration is None else self.calibration
        key = calibration_key(flow, batch, guidance, self.tol)
        if is_measured(known.choices.get(key, ()), flow, batches):
            return [choice.solver_of(self.tol) for choice in known.choices[key]]
        measured: list[Choice] = []

        def keep(choice: Choice) -> None:
            measured.append(choice)
            if len(measured) == len(flow.blocks):
                known.choices[key] = tuple(measured)

        return [_Measured(self.tol, batches, keep) for _ in flow.blocks]


class _Measured(Solver):
    """Of one block: measures which solver is the fastest when it is first asked, and is that one from then on."""

    def __init__(self, tol: float | None, batches: float, keep: Callable[[Choice], None]) -> None:
        self.tol, self.batches, self.keep = tol, batches, keep
        self.choice: Choice | None = None

    def solve(self, predict: Predict, z: Tensor) -> Solution:
        if self.choice is None:
            self.choice, solution = fastest(predict, z, self.tol, self.batches)
            self.keep(self.choice)
            if solution is not None:
                return solution
        return self.choice.solver_of(self.tol).solve(predict, z)

    def __str__(self) -> str:
        return str(self.choice)


def is_measured(choices: Sequence[Choice], flow: SequenceFlow, batches: float) -> bool:
    """Whether choices are to be used for so many batches: measured, or not worth measuring for them, either."""
    if len(choices) != len(flow.blocks):  # a damaged file
        return False
    steps = flow.sequence.tokens - 1
    return any(choice.seconds for choice in choices) or not _affordable(steps, flow.device, batches)


def _affordable(steps: int, device: torch.device, batches: float) -> float:
    """How many steps of the sequential solver measuring a block may cost; 0 where that is too little to measure by."""
    if device.type != "cpu":  # elsewhere steps cost their launches, and what is measured first is all used
        return math.inf
    affordable = MEASURING_SHARE * steps * batches
    return affordable if affordable >= LEAST_STEPS else 0.0


def fastest(
    predict: Predict, z: Tensor, tol: float | None = None, batches: float = math.inf
) -> tuple[Choice, Solution | None]:
    """The solver that decodes this block fastest, and its solution unless that is still to be computed.

    The arguments are those of a solver. The sequential one is timed by a few steps. The parallel one decodes the
    block, first with a window that costs little more to evaluate than a patch, then with larger ones as long as that is
    quicker, or with a smaller one; an attempt that falls behind the best is broken off.

    `batches` of this size are to be decoded with the choice. On a CPU all of this costs no more than `MEASURING_SHARE`
    of them: once that is spent, only an attempt that is on its way to win goes on. Where it is too little to measure
    anything, the sequential solver is taken unmeasured.
    """
    last = z.shape[1] - 1
    affordable = _affordable(last, z.device, batches)
    if last < 2 or not affordable:  # nothing to be evaluated at once, or to be gained
        return Choice("sequential"), None
    began, probes = time.perf_counter(), PROBES if affordable > PROBES * LEAST_STEPS else 1
    predict = replace(predict, report=None)
    stepwise, found = _sequential_seconds(predict, z, probes)
    deadline = began + affordable * stepwise / last  # of measuring
    best = Choice("sequential", None, stepwise, stepwise)

    def attempt(window: int) -> bool:
        """Whether the parallel solver with this window is the best so far."""
        nonlocal best, found
        if time.perf_counter() + window * stepwise / last > deadline:
            return False
        clock = _Clock(best.seconds, last, deadline)
        try:
            solution = Jacobi(window, tol).solve(replace(predict, report=clock.check), z)
        except _TooSlow:
            return False
        if clock.seconds() >= best.seconds:
            return False
        best, found = Choice("jacobi", window, clock.seconds(), stepwise), solution
        return True

    window = larger = _first_window(predict, z, probes, deadline)
    attempt(window)
    while larger < last:
        larger = min(last, larger * WINDOW_FACTOR)
        if not attempt(larger):
            break
    if best.window in (None, window) and window > WINDOW_FACTOR:
        attempt(window // WINDOW_FACTOR)
    return best, found


class _TooSlow(Exception):
    """An attempt that cannot become the fastest any more."""


class _Clock:
    """Breaks an attempt off when it has taken, or is bound to take, longer than the best so far.

    After the `deadline` an attempt goes on only as long as it is on its way to be the fastest.
    """

    def __init__(self, limit: float, last: int, deadline: float) -> None:
        self.limit, self.last, self.deadline, self.started = limit, last, deadline, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def check(self, done: int) -> None:
        """As a solver reports: so many patches are final."""
        spent, share = self.seconds(), done / self.last
        if spent > self.limit or (share > EARLIEST_SHARE and spent / share > HOPELESS * self.limit):
            raise _TooSlow
        if self.started + spent > self.deadline and spent > share * self.limit:
            raise _TooSlow


def _first_window(predict: Predict, z: Tensor, probes: int, deadline: float) -> int:
    """The largest window, of powers of `WINDOW_FACTOR` and the whole, that costs no more than `WIDE_EVALUATION`."""
    last = z.shape[1] - 1
    single = seconds = _median_seconds(lambda: predict(z[:, :1], 0), z.device, probes)
    window = 1
    while window < last:
        wider = min(last, window * WINDOW_FACTOR)
        if time.perf_counter() + probes * seconds * wider / window > deadline:  # what it may cost at worst
            break
        seconds = _median_seconds(lambda wider=wider: predict(z[:, :wider], 0), z.device, probes)  # type: ignore[misc]
        if seconds > WIDE_EVALUATION * single:
            break
        window = wider
    return max(window, min(WINDOW_FACTOR, last))


def _sequential_seconds(predict: Predict, z: Tensor, probes: int) -> tuple[float, Solution | None]:
    """The time of the sequential solver, and its solution where it had to be computed for that.

    Estimated from a few steps at the start and as many at the end, where they see the whole cache. On a GPU, where a
    step is recorded and a few of them say nothing, all are taken; recording, which later batches are spared, does not
    count.
    """
    last = z.shape[1] - 1
    if z.device.type == "cuda":
        _wait(z.device)
        recorded = 0.0 if predict.replay is None else predict.replay.seconds
        started = time.perf_counter()
        solution = Sequential().solve(predict, z)
        _wait(z.device)
        recording = 0.0 if predict.replay is None else predict.replay.seconds - recorded
        return time.perf_counter() - started - recording, solution

    def step_seconds(place: int) -> float:
        """What the solver takes for one patch, at a place of the sequence."""
        there = replace(predict, evaluate=lambda x, _: predict.evaluate(x, place))
        return _median_seconds(lambda: sequential(there, z[:, place : place + 2]), z.device, probes)

    predict(z[:, :1], 0)  # reads the weights and wakes the threads, which the first one to be timed would pay for alone
    return last * (step_seconds(0) + step_seconds(last - 1)) / 2, None


def _median_seconds(run: Callable[[], object], device: torch.device, probes: int) -> float:
    taken = []
    for _ in range(probes):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[probes // 2]


def _wait(device: torch.device) -> None:
    """Until everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
