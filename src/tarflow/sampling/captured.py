"""Sequential decoding on a GPU: one step captured as a CUDA graph, and replayed for every patch.

A step is a hundred small kernels, and launching them one by one takes longer than running them. A graph launches all of
them at once, but its shapes are fixed: the position is a tensor on the device that the step itself moves on, and
attention looks at a whole stretch of the cache under a mask. The stretch grows in a few lengths, so that early patches
do not pay for the room of late ones. Nothing is allocated in the loop, and the host waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tarflow.model.cache import KVCache
from tarflow.sampling.guidance import Predict
from tarflow.sampling.sequential import Solution

LENGTHS = 8  # stretches of a sequence: a mean cost of 9/16 of the whole cache instead of 1/2, for 8 captures a block
SHORTEST = 32  # patches of a stretch; a capture costs about as much as ten steps without one
ALIGNED = 8  # kernels of attention with a mask want lengths that are multiples of this
WARM_UP = 2  # steps before a capture, which let libraries allocate what they keep

Step = Callable[[], None]
Capture = Callable[[Step], Step]


def captured(
    make_predict: Callable[[KVCache], Predict], z: Tensor, cache: KVCache, capture: Capture | None = None
) -> Solution:
    """As `sequential`, with one captured step for each length of the cache.

    Args:
        make_predict: `predict` of the block for a cache, as `tarflow.sampling.guidance.predictor` wraps it. It is
            called with a device tensor as its start.
        z: (B, T, D), in the block's own order. Not written to.
        cache: for the whole sequence; stretches of it are handed to `make_predict`.
        capture: makes a step into something that repeats it; None is `cuda_graph`.

    Returns:
        x (B, T, D) in the block's own order, after T-1 iterations, with no residual.
    """
    capture = capture or cuda_graph()
    last = z.shape[1] - 1
    x = z.clone()
    place = torch.zeros(1, dtype=torch.int64, device=z.device)  # of the patch that was decoded last
    stretch = max(SHORTEST, -(-last // LENGTHS))
    for first in range(0, last, stretch):
        end = min(last, first + stretch)
        room = min(cache.length, -(-end // ALIGNED) * ALIGNED)  # what is behind `end` is under the mask
        step = _step(make_predict(cache.first(room)), z, x, place)
        warm = min(WARM_UP, end - first)
        replay = step
        for done in range(end - first):
            if done == warm:
                replay = capture(step)
            replay()
    return Solution(x, last, 0.0)


def _step(predict: Predict, z: Tensor, x: Tensor, place: Tensor) -> Step:
    """x_{i+1} = z_{i+1}·exp(log_scale_{i+1}) + shift_{i+1} and i ← i+1, all of it on the device."""

    def step() -> None:
        following = place + 1
        shift, log_scale = predict(x.index_select(1, place), place[0])
        fresh = z.index_select(1, following) * torch.exp(log_scale) + shift
        x.index_copy_(1, following, fresh)
        place.copy_(following)

    return step


def cuda_graph() -> Capture:
    """A `capture` that records CUDA graphs, all of them in one pool of memory."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):  # recorded, not run
            step()
        return graph.replay

    return capture
