"""Sequential decoding of one block with a key/value cache: one patch a step, T-1 steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from tarflow.sampling.guidance import Predict


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        x: (B, T, D), in the block's own order.
        iterations: evaluations of `predict`; at most T-1.
        residual: the largest |F(x) - x| / max(1, |x|) over all patches and rows, with F one more evaluation; at most
            the tolerance. Rows that are not finite are left out.
    """

    x: Tensor
    iterations: int
    residual: float


def sequential(predict: Predict, z: Tensor) -> Solution:
    """Solve x_i = predict.inverse(z_i, params_i(x_<i)) patch by patch.

    Args:
        predict: the block, as `tarflow.sampling.guidance.predictor` wraps it.
        z: (B, T, D), in the block's own order. Not written to.

    Returns:
        x (B, T, D) in the block's own order, after T-1 iterations, with no residual.
    """
    x = z.clone()  # x_0 = z_0, and every other z_i is replaced in its turn
    patches = x.split(1, dim=1)  # views of x
    for i, (known, following) in enumerate(itertools.pairwise(patches)):
        following.copy_(predict.inverse(following, predict(known, i)))
    return Solution(x, z.shape[1] - 1, 0.0)
