"""The blocks inverted one after the other: from standard normal noise to the patches of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tarflow.devices import free_bytes
from tarflow.model.block import Block
from tarflow.model.cache import KVCache
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.cuda.graph import Captured
from tarflow.sampling.cuda.step import DeviceStep
from tarflow.sampling.guidance import Guidance, Predict, guided_rows, predictor
from tarflow.sampling.jacobi import STEADY, Jacobi, default_tolerance, jacobi, network_dtype
from tarflow.sampling.sequential import Solution, sequential
from tarflow.seeding import seeded_normal

Solve = Callable[[Predict, Tensor], Solution]
"""solve(predict, z): a solver, its options decided; z and the solution in the block's own order."""

Progress = Callable[[int, int], None]
"""progress(done, total), in patches of a block."""

CAPTURED_TOKENS = 1 << 13  # that a GPU evaluates faster than the host launches them: then windows are captured, too
CACHE_BYTES = 1 << 30  # keys and values held at once where the batch size is ours to choose
CPU_ROWS = 256  # images at once on a CPU: a step is bound by arithmetic from here on, and memory grows on
CACHE_SHARE = 0.25  # of a GPU's free memory; the rest is for a window's activations, and for denoising


def decode(
    flow: SequenceFlow,
    noise: Tensor,
    y: Tensor | None = None,
    guidance: Guidance | None = None,
    solvers: Sequence[Solve] | None = None,
    progress: Progress | None = None,
    captured: Captured | None = None,
) -> Iterator[Solution]:
    """Invert the flow: from standard normal noise (B, T, D) and checked labels (B,), what each block leaves.

    The patches (B, T, D) of the last one, in raster order, are those of the images, not denoised. `solvers` has one a
    block, in the order of sampling; None is the sequential one for all. `captured` holds on to what a GPU has recorded.
    """
    captured = captured or Captured()
    x = latents_of(flow, noise)
    for number, block in enumerate(reversed(flow.blocks)):
        solution = invert(block, x, y, guidance, solvers[number] if solvers else sequential, progress, captured)
        x = solution.x
        yield solution


def latents_of(flow: SequenceFlow, noise: Tensor) -> Tensor:
    """Standard normal noise (B, T, D) to latents of the flow, N(0, V): on its device, in the dtype of its state."""
    return flow.base.sample(noise.to(device=flow.device, dtype=torch.promote_types(flow.dtype, torch.float32)))


@torch.no_grad()
def invert(
    block: Block,
    z: Tensor,
    y: Tensor | None = None,
    guidance: Guidance | None = None,
    solve: Solve = sequential,
    progress: Progress | None = None,
    captured: Captured | None = None,
) -> Solution:
    """Decode one block: z (B, T, D) in raster order and checked labels (B,) to x (B, T, D) in raster order.

    Its cache is gone when it returns, also when a step fails: there is never more than one block's. That of a GPU's
    sequential solver goes with `captured`, or where there is none, too.
    """
    z = block.order.forward(z)
    captured = captured or Captured()
    on_gpu = _on_gpu(block, z)
    rows = guided_rows(guidance, len(z))
    if solve is sequential and on_gpu:
        solution = captured.solve(block, z, y, guidance)
    else:
        few = on_gpu and isinstance(solve, Jacobi) and rows * z.shape[1] <= CAPTURED_TOKENS
        if few:
            predict = captured.predictor(block, y, guidance, len(z))
        else:
            predict = predictor(block, y, guidance, block.new_cache(rows))
        predict = _reporting(predict, z.shape[1], progress)
        if isinstance(solve, Jacobi):
            dtype = network_dtype(block)
            tol = default_tolerance(dtype) if solve.tol is None else solve.tol
            shapes = 1 if few else STEADY if dtype.itemsize < 4 else None
            solution = jacobi(predict, z, window=solve.window, tol=tol, shapes=shapes)
        else:
            solution = solve(predict, z)
    if progress is not None:
        progress(z.shape[1], z.shape[1])
    return dataclasses.replace(solution, x=block.order.inverse(solution.x))


def _on_gpu(block: Block, z: Tensor) -> bool:
    """Whether what is evaluated can be captured: on CUDA, by what `DeviceStep` knows."""
    return z.device.type == "cuda" and z.shape[1] > 1 and DeviceStep.fits(block)


def _reporting(predict: Predict, length: int, progress: Progress | None) -> Predict:
    """`predict`, saying how far it has come: a solver only asks for what follows patches that are final."""
    if progress is None:
        return predict

    def watched(x: Tensor, start: int) -> Tensor:
        assert progress is not None
        progress(start, length)
        return predict(x, start)

    return dataclasses.replace(predict, evaluate=watched)


def draw_noise(flow: SequenceFlow, indices: Tensor, seed: int, attempt: int = 0) -> Tensor:
    """Standard normal noise (b, T, D), float64 on the CPU; that of image k depends on (seed, k, attempt) only."""
    shape = (flow.sequence.tokens, flow.sequence.dim)
    return torch.stack([seeded_normal(shape, seed, "sample", int(k), attempt) for k in indices])


def default_batch_size(flow: SequenceFlow, guidance: Guidance | None) -> int:
    """How many images have room for the keys and values of their largest block, at least 1.

    The room is `CACHE_BYTES`, and on a GPU that has more, `CACHE_SHARE` of what is free. On a CPU more than `CPU_ROWS`
    sequences at once are no faster.
    """
    room = CACHE_BYTES
    if flow.device.type == "cuda":
        room = max(room, int(CACHE_SHARE * (free_bytes(flow.device) or 0)))
    per_row = max(
        KVCache.bytes_needed(len(block.layers), 1, flow.sequence.width, flow.sequence.tokens, block.dtype)
        for block in flow.blocks
    )
    rows = room // per_row
    if flow.device.type == "cpu":
        rows = min(rows, CPU_ROWS)
    return max(1, rows // guided_rows(guidance, 1))
