"""A solver in one file: what a newcomer writes. It evaluates all patches before each one, and keeps nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tarflow.sampling.solver import Predict, Solution, Solver


@dataclass(frozen=True)
class Toy(Solver):
    """x_i from one evaluation of x_<i, for each i in turn."""

    def solve(self, predict: Predict, z: Tensor) -> Solution:
        x = z.clone()
        for i in range(1, z.shape[1]):
            params = predict(x[:, :i], 0)[:, -1:]
            x[:, i : i + 1] = predict.inverse(z[:, i : i + 1], params)
        return Solution(x, z.shape[1] - 1, 0.0)


@dataclass(frozen=True)
class Wrapped(Solver):
    """Another solver, as it is."""

    inner: Solver

    def solve(self, predict: Predict, z: Tensor) -> Solution:
        return self.inner.solve(predict, z)
