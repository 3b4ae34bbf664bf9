"""The fastest solver of each block: measured while the first batch is decoded, and kept for those that follow.

Whether many patches at a time pay depends on the weights, the batch, the guidance and the machine. Every candidate is
exact within its tolerance, so what is measured is used.
"""

from __future__ import annotations

import math
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tarflow import storage
from tarflow.devices import synchronise
from tarflow.model.saving import read_json
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.guidance import Guidance, active
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
class Choice:
    """How one block is decoded, and what that took when it was measured.

    Attributes:
        solver: "sequential" or "jacobi".
        window: patches that "jacobi" evaluates at once.
        seconds: for the batch that was measured; of "sequential", estimated from a few steps.
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

    def solver_of(self, tol: float | None) -> Solver:
        return Sequential() if self.solver == "sequential" else Jacobi(self.window, tol)


class Calibration:
    """Which solver decodes each block of one flow fastest, for the batch sizes and guidances it was measured for.

    `tarflow.Auto(calibration)` reads it and fills it; `tarflow sample` keeps it in RUN/solvers.json.

    >>> import tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> calibration = tarflow.Calibration()
    >>> x = tarflow.sample(flow, 2, solver=tarflow.Auto(calibration))
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
        choices = {key: [asdict(c) for c in choices] for key, choices in self.choices.items()}
        storage.write_json(Path(path), {"weights": weights, "choices": choices})


def calibration_key(flow: SequenceFlow, batch: int, guidance: Guidance | None, tol: float | None) -> str:
    """What a choice depends on: the machine, the precision, the batch, the guidance and the tolerance."""
    device = flow.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    guided = "no guidance" if active(guidance) is None else repr(guidance)
    tolerance = "default tolerance" if tol is None else f"tolerance {tol:g}"
    autocast = ", autocast" if torch.is_autocast_enabled(device.type) else ""
    dtype = str(flow.dtype).removeprefix("torch.")
    return f"{where}, {threads}, torch {torch.__version__}, {dtype}{autocast}, batch {batch}, {guided}, {tolerance}"


_REMEMBERED: weakref.WeakKeyDictionary[SequenceFlow, tuple[int, Calibration]] = weakref.WeakKeyDictionary()


def remembered(flow: SequenceFlow) -> Calibration:
    """What was measured for this flow in this process, as long as its weights are the same.

    Timings and nothing else: no sample depends on it beyond the tolerance of the solvers.
    """
    # What was made in inference mode counts no versions. A choice of weights that changed is slower, and not wrong.
    version = sum(0 if parameter.is_inference() else parameter._version for parameter in flow.parameters())
    known = _REMEMBERED.get(flow)
    if known is None or known[0] != version:
        known = _REMEMBERED[flow] = (version, Calibration())
    return known[1]


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
        choices, affordable = known.choices.get(key, ()), _affordable(flow.sequence.slots - 1, flow.device, batches)
        complete = len(choices) == len(flow.blocks)  # else it is from a damaged file
        if complete and (not affordable or any(choice.seconds for choice in choices)):
            return [choice.solver_of(self.tol) for choice in choices]
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
        started = time.perf_counter()
        if started + window * stepwise / last > deadline:
            return False

        def check(done: int) -> None:
            """Break off what took longer than the best, or is bound to; after the deadline, what is not winning."""
            spent, share = time.perf_counter() - started, done / last
            bound = share > EARLIEST_SHARE and spent / share > HOPELESS * best.seconds
            if spent > best.seconds or bound or (started + spent > deadline and spent > share * best.seconds):
                raise _TooSlow

        try:
            solution = Jacobi(window, tol).solve(replace(predict, report=check), z)
        except _TooSlow:
            return False
        seconds = time.perf_counter() - started
        if seconds >= best.seconds:
            return False
        best, found = Choice("jacobi", window, seconds, stepwise), solution
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
        synchronise(z.device)
        recorded = 0.0 if predict.replay is None else predict.replay.seconds
        started = time.perf_counter()
        solution = Sequential().solve(predict, z)
        synchronise(z.device)
        recording = 0.0 if predict.replay is None else predict.replay.seconds - recorded
        return time.perf_counter() - started - recording, solution

    def step_seconds(place: int) -> float:
        there = replace(predict, evaluate=lambda x, _: predict.evaluate(x, place))
        return _median_seconds(lambda: sequential(there, z[:, place : place + 2]), z.device, probes)

    predict(z[:, :1], 0)  # reads the weights and wakes the threads, which the first one to be timed would pay for alone
    return last * (step_seconds(0) + step_seconds(last - 1)) / 2, None


def _median_seconds(run: Callable[[], object], device: torch.device, probes: int) -> float:
    taken = []
    for _ in range(probes):
        synchronise(device)
        started = time.perf_counter()
        run()
        synchronise(device)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[probes // 2]
