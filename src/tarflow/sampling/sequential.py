"""Sequential decoding of one block with a key/value cache: one patch a step, T-1 steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from tarflow.sampling.solver import Predict, Solution, Solver


@dataclass(frozen=True)
class Sequential(Solver):
    """One patch a step: exact, and bit for bit the same from run to run. On a GPU the steps are replayed."""

    def solve(self, predict: Predict, z: Tensor) -> Solution:
        if predict.replay is not None:
            return Solution(predict.replay.steps(z), z.shape[1] - 1, 0.0)
        return sequential(predict, z)


def sequential(predict: Predict, z: Tensor) -> Solution:
    """Solve x_i = predict.inverse(z_i, params_i(x_<i)) patch by patch: T-1 iterations, no residual."""
    x = z.clone()  # x_0 = z_0, and every other z_i is replaced in its turn
    patches = x.split(1, dim=1)  # views of x
    for i, (known, following) in enumerate(itertools.pairwise(patches)):
        following.copy_(predict.inverse(following, predict(known, i)))
    return Solution(x, z.shape[1] - 1, 0.0)
