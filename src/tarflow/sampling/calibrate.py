"""Which solver is the fastest here? Measured, block by block, while the first batch is decoded.

Whether many patches at a time pay depends on how strongly a block's patches hang together, on the batch, the guidance
and the machine; no table knows that. So the first batch is decoded with the candidates in turn, under a clock, and the
quickest of each block is kept for those that follow. Every candidate is exact within its tolerance, so what is measured
is used.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tarflow.model.block import Block
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.choices import _REMEMBERED as _REMEMBERED
from tarflow.sampling.choices import Calibration as Calibration
from tarflow.sampling.choices import Choice as Choice
from tarflow.sampling.choices import calibration_key as calibration_key
from tarflow.sampling.choices import remembered as remembered
from tarflow.sampling.cuda.graph import Captured
from tarflow.sampling.decode import Progress, invert, latents_of
from tarflow.sampling.guidance import Guidance, guided_rows, predictor
from tarflow.sampling.jacobi import Jacobi
from tarflow.sampling.sequential import Solution, sequential

STRIDE = 4  # windows that are tried differ by this factor
SLACK = 2.0  # the first of them is the largest whose evaluation takes no longer than that many of a single patch
PROBES = 5  # timings of one thing, whose median counts
ENOUGH = 0.25  # share of the patches after which it is clear how long an attempt will take
PRICE = 0.04  # of all that is to be decoded with a choice: what measuring may cost on a CPU, where it is no part of it
WORTH = 6.0  # steps of the sequential solver that measuring takes at least; where less may be spent, nothing is tried
PATIENCE = 1.25  # an attempt is broken off when that will be so many times as long as the best one took


def calibrated_decode(
    flow: SequenceFlow,
    noise: Tensor,
    y: Tensor | None,
    guidance: Guidance | None,
    tol: float | None,
    choices: list[Choice],
    progress: Progress | None = None,
    captured: Captured | None = None,
    batches: float = 1.0,
) -> Iterator[Solution]:
    """`decode` of the first batch: yields the same, and appends the fastest solver of each block to `choices`.

    `batches` are to be decoded with them, this one included; see `fastest`.
    """
    x = latents_of(flow, noise)
    for block in reversed(flow.blocks):
        choice, solution = fastest(block, x, y, guidance, tol, captured, batches)
        if solution is None:
            solution = invert(block, x, y, guidance, choice.solve(tol), progress, captured)
        elif progress is not None:
            progress(x.shape[1], x.shape[1])
        choices.append(choice)
        x = solution.x
        yield solution


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
    price = PRICE * steps * batches
    return price if price >= WORTH else 0.0


def fastest(
    block: Block,
    z: Tensor,
    y: Tensor | None,
    guidance: Guidance | None,
    tol: float | None = None,
    captured: Captured | None = None,
    batches: float = math.inf,
) -> tuple[Choice, Solution | None]:
    """The solver that decodes this block fastest, and its solution unless that is still to be computed.

    The arguments are those of `invert`. The sequential solver is timed by a few steps. The parallel one decodes the
    block, first with a window that costs little more to evaluate than a patch, then with larger ones as long as that is
    quicker, or with a smaller one; an attempt that falls behind the best is broken off.

    `batches` of this size are to be decoded with the choice. On a CPU all of this costs no more than `PRICE` of them:
    once that is spent, only an attempt that is on its way to win goes on. Where it is too little to measure anything,
    the sequential solver is taken unmeasured.
    """
    last = z.shape[1] - 1
    affordable = _affordable(last, z.device, batches)
    if last < 2 or not affordable:  # nothing to be evaluated at once, or to be gained
        return Choice("sequential"), None
    began, probes = time.perf_counter(), PROBES if affordable > PROBES * WORTH else 1
    stepwise, found = _sequential_seconds(block, z, y, guidance, captured or Captured(), probes)
    purse = began + affordable * stepwise / last  # until when measuring may take
    best = Choice("sequential", None, stepwise, stepwise)

    def attempt(window: int) -> bool:
        """Whether the parallel solver with this window is the best so far."""
        nonlocal best, found
        if time.perf_counter() + window * stepwise / last > purse:
            return False
        clock = _Clock(best.seconds, last, purse)
        try:
            solution = invert(block, z, y, guidance, Jacobi(window, tol), clock.check, captured)
        except _TooSlow:
            return False
        if clock.seconds() >= best.seconds:
            return False
        best, found = Choice("jacobi", window, clock.seconds(), stepwise), solution
        return True

    window = larger = _first_window(block, z, y, guidance, probes, purse)
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
    """Breaks an attempt off when it has taken, or is bound to take, longer than the best so far.

    After the moment `purse` an attempt goes on only as long as it is on its way to be the fastest.
    """

    def __init__(self, limit: float, last: int, purse: float) -> None:
        self.limit, self.last, self.purse, self.started = limit, last, purse, time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def check(self, done: int, total: int) -> None:
        """As a block reports its progress: patches that are final, of how many."""
        spent, share = self.seconds(), done / self.last
        if spent > self.limit or (share > ENOUGH and spent / share > PATIENCE * self.limit):
            raise _TooSlow
        if self.started + spent > self.purse and spent > share * self.limit:
            raise _TooSlow


@torch.no_grad()
def _first_window(
    block: Block, z: Tensor, y: Tensor | None, guidance: Guidance | None, probes: int, purse: float
) -> int:
    """The largest window, of powers of STRIDE and the whole, that is evaluated in SLACK times the time of a patch."""
    last = z.shape[1] - 1
    predict = predictor(block, y, guidance, block.new_cache(guided_rows(guidance, len(z))))
    z = block.order.forward(z)
    single = seconds = _median_seconds(lambda: predict(z[:, :1], 0), z.device, probes)
    window = 1
    while window < last:
        wider = min(last, window * STRIDE)
        if time.perf_counter() + probes * seconds * wider / window > purse:  # what it may cost at worst
            break
        seconds = _median_seconds(lambda wider=wider: predict(z[:, :wider], 0), z.device, probes)  # type: ignore[misc]
        if seconds > SLACK * single:
            break
        window = wider
    return max(window, min(STRIDE, last))


@torch.no_grad()
def _sequential_seconds(
    block: Block, z: Tensor, y: Tensor | None, guidance: Guidance | None, captured: Captured, probes: int = PROBES
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
    z = block.order.forward(z)

    def step(place: int) -> Solution:
        """What the solver does for one patch, at a place of the sequence."""
        there = dataclasses.replace(predict, evaluate=lambda x, _: predict(x, place))
        return sequential(there, z[:, place : place + 2])

    ends = [_median_seconds(lambda place=place: step(place), z.device, probes) for place in (0, last - 1)]  # type: ignore[misc]
    return last * sum(ends) / 2, None


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
