"""How much work decoding is, and the least time that it can take on a machine of given rates.

Counted are the products of matrices and what they read; norms, activations and the affine step are left out, so a
floor is a floor. The arithmetic is that of `tarflow.planning.work`; the cached loop does as much of it as `encode`
does, one token after the other. With W the width, L the layers of a block, E the expansion of the MLP, D the numbers in
a patch, T the patches, O = 2D outputs (affine) or D (additive), and s bytes a number:

    weights of a block   s·(DW + W + WO + O + L·((4 + 2E)W² + (9 + E)W))
    cache, read          s·L·2W·T(T-1)/2                         keys and values of all patches so far, at every step

Guidance runs both branches: twice the arithmetic and twice the cache, over the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from tarflow.config import TarFlowConfig
from tarflow.planning.work import block_parameters, fed_tokens, forward_flops, token_flops


@dataclass(frozen=True)
class Work:
    """What decoding a batch takes, over all blocks.

    Attributes:
        flops: multiplications and additions of all products.
        weight_bytes: weights read by the cached loop, once a step whatever the batch.
        cache_bytes: keys and values read by the cached loop, once a step.
        weight_set: bytes of the weights of the largest block: what is read again and again.
        cache_set: bytes of the keys and values of the largest block when it is full.
    """

    flops: int
    weight_bytes: int
    cache_bytes: int
    weight_set: int
    cache_set: int


def decoding_work(config: TarFlowConfig, images: int, *, guided: bool, itemsize: int) -> Work:
    """The work of the cached loop for a batch of `images`, with weights and cache of `itemsize` bytes a number."""
    rows = images * (2 if guided else 1)
    steps = fed_tokens(config)
    pairs = steps * (steps + 1) // 2  # Σ_{i<T-1} (i+1)
    weight_bytes = cache_bytes = 0
    for block, layers in enumerate(config.layers):
        weight_bytes += steps * block_parameters(config, block) * itemsize
        cache_bytes += rows * layers * 2 * config.width * pairs * itemsize
    deepest = max(config.layers)
    return Work(
        forward_flops(config, rows),
        weight_bytes,
        cache_bytes,
        weight_set=max(block_parameters(config, block) for block in range(len(config.layers))) * itemsize,
        cache_set=rows * deepest * 2 * config.width * steps * itemsize,
    )


def arithmetic_floor(work: Work, flops_per_second: float) -> float:
    """Seconds of the arithmetic alone, at the rate of large products: no exact decoder that is sequential beats it."""
    return work.flops / flops_per_second


def loop_floor(work: Work, flops_per_second: float, weight_rate: float, cache_rate: float) -> float:
    """Seconds of the plain cached loop: its arithmetic, and the bytes of weights and cache at the rates they are read.

    The rates are in bytes a second, measured over working sets of `weight_set` and `cache_set` bytes. The three are
    added up: in a loop of small steps little of one hides behind another.
    """
    return arithmetic_floor(work, flops_per_second) + work.weight_bytes / weight_rate + work.cache_bytes / cache_rate


def reference_flops(config: TarFlowConfig, images: int) -> int:
    """The arithmetic of `TarFlow.decode`, which runs the growing prefix anew for every patch.

    Step i = 1 … T-1 puts i tokens through the block, with i² pairs in its attention (i²/2 where the kernel skips what
    is masked; this is the estimate that decides whether to wait for it).
    """
    steps = fed_tokens(config)
    tokens, squares = steps * (steps + 1) // 2, steps * (steps + 1) * (2 * steps + 1) // 6
    return images * sum(
        tokens * token_flops(config, block) + layers * 4 * config.width * squares
        for block, layers in enumerate(config.layers)
    )
