"""What a solver is: a frozen value that inverts one block, given `predict` and nothing else; and the table of them.

A new solver is a file with a subclass of `Solver`, and a line in `SOLVERS`: `tarflow.sample(solver=…)`, the laws of
`tests/sampling/test_solver_laws.py` and `tarflow sample --solver NAME` take it from there.
"""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tarflow.model.sequence import SequenceFlow
    from tarflow.sampling.guidance import Guidance

SOLVERS = {  # name: module and class. Names only, so that the command line knows them without importing torch
    "auto": "tarflow.sampling.auto:Auto",
    "sequential": "tarflow.sampling.sequential:Sequential",
    "jacobi": "tarflow.sampling.jacobi:Jacobi",
}


class Inverse(Protocol):
    """What makes x (B, n, D) of z (B, n, D) and parameters (B, n, …): a transform, or one under guidance."""

    def inverse(self, z: Tensor, params: Tensor) -> Tensor: ...


class Replay(Protocol):
    """What a GPU records of one block and replays, without the time that launching each kernel takes."""

    @property
    def seconds(self) -> float:
        """How long recording has taken so far."""

    def steps(self, z: Tensor) -> Tensor:
        """x (B, T, D) from z by one token a step, all T-1 of them."""

    def windows(self) -> Callable[[Tensor, int], Tensor] | None:
        """What evaluates as `predict` does, and records each window that is new; None where that would not pay.

        What it returns lasts until it is called again.
        """


@dataclass(frozen=True)
class Predict:
    """A block as a solver sees it: x_i = predict.inverse(z_i, params_i) is to be solved, with params_i = predict(x_<i).

        params = predict(x, start)      of tokens start+1 … start+n, (B, n, …), from x (B, n, D), tokens start …
        x = predict.inverse(z, params)  (B, n, D); of zeros as parameters, x = z

    The parameters are the inverse's own affair, and under guidance those of both branches, so that a solver knows of no
    guidance. Tokens before `start` are those that were given last, and are taken for final.

    Attributes:
        evaluate: what `predict` calls.
        transform: that has the inverse.
        dtype: in which the network computes its products; None is the dtype of z.
        replay: what a GPU replays, for solvers that ask for it; None where nothing can be.
        report: called with `start` at every evaluation, to say how many tokens are final.
    """

    evaluate: Callable[[Tensor, int], Tensor]
    transform: Inverse
    dtype: torch.dtype | None = None
    replay: Replay | None = None
    report: Callable[[int], None] | None = None

    def __call__(self, x: Tensor, start: int) -> Tensor:
        if self.report is not None:
            self.report(start)
        return self.evaluate(x, start)

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        return self.transform.inverse(z, params)


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        x: (B, T, D), in the block's own order.
        iterations: evaluations of `predict`; at most T-1.
        residual: the largest |F(x) - x| / max(1, |x|) over all patches and rows, with F one more evaluation; at most
            the tolerance. Rows that are not finite are left out.
        ladj: log|det ∂z/∂x| (B,) of the block, nats, where it was asked for and is known; no solver gives it.
    """

    x: Tensor
    iterations: int
    residual: float
    ladj: Tensor | None = None


class Solver(ABC):
    """A way to solve x_i = inverse(z_i, params(x_<i)) for all i: a frozen dataclass whose fields are its options.

    A solver that wraps another one hands `predict` on, and with it what a GPU replays.
    """

    @abstractmethod
    def solve(self, predict: Predict, z: Tensor) -> Solution:
        """Invert a block: z (B, T, D) in its own order, not written to, to x (B, T, D), as `predict` says."""

    def by_block(self, flow: SequenceFlow, guidance: Guidance | None, batch: int, batches: float) -> list[Solver]:
        """What solves each block in the order of sampling, for so many `batches` of so many images each."""
        return [self] * len(flow.blocks)

    def __str__(self) -> str:
        return type(self).__name__.lower()


def solver_of(solver: Solver | str, **options: Any) -> Solver:
    """A solver, or that of the table with a name, and its `options`; those that are None are not given.

    Raises ValueError for an unknown name, and for an option that the solver has not.
    """
    if isinstance(solver, Solver):
        return solver
    if solver not in SOLVERS:
        known = ", ".join(SOLVERS)
        raise ValueError(f"solver: expected {known}, or a value such as tarflow.Jacobi(window=16), got {solver!r}")
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in _options(solver):
            others = " or ".join(name for name in SOLVERS if option in _options(name))
            raise ValueError(f"{option}: solver {solver!r} has none; expected solver {others}")
    return cast("Solver", _class(solver)(**given))


def _class(name: str) -> Any:
    """The class of the table with a name."""
    module, _, name = SOLVERS[name].partition(":")
    return getattr(importlib.import_module(module), name)


def _options(name: str) -> list[str]:
    return [field.name for field in dataclasses.fields(_class(name))]
