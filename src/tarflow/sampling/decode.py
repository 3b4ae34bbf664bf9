"""The blocks inverted one after the other: from standard normal noise to the patches of images."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tarflow.devices import free_bytes
from tarflow.model.block import Block
from tarflow.model.cache import KVCache
from tarflow.model.condition import Value
from tarflow.model.events import only
from tarflow.model.order import Padded
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.cuda.graph import BlockReplay, Captured
from tarflow.sampling.cuda.step import DeviceStep
from tarflow.sampling.guidance import Guidance, guided_rows, inverse_of, predictor
from tarflow.sampling.sequential import Sequential
from tarflow.sampling.solver import Predict, Solution, Solver
from tarflow.seeding import seeded_normal

CACHE_BYTES = 1 << 30  # keys and values held at once where the batch size is ours to choose
CPU_ROWS = 256  # images at once on a CPU: a step is bound by arithmetic from here on, and memory grows on
CACHE_SHARE = 0.25  # of a GPU's free memory; the rest is for a window's activations, and for denoising

SEEDS = 1 << 62  # seeds that a draw from the global generator chooses from

Report = Callable[[int], None]
"""report(done): so many patches of each sequence are final."""


def decode(
    flow: SequenceFlow,
    noise: Tensor,
    y: Value = None,
    guidance: Guidance | None = None,
    solvers: Sequence[Solver] | None = None,
    report: Report | None = None,
    captured: Captured | None = None,
    ladj: bool = False,
    mask: Tensor | None = None,
) -> Iterator[Solution]:
    """Invert the flow: from standard normal noise (B, T, D) and checked labels (B,), what each block leaves.

    The patches (B, T, D) of the last one, in raster order, are those of the images, not denoised. `solvers` has one a
    block, in the order of sampling; None is the sequential one for all. `report` counts the patches of all blocks.
    `captured` holds on to what a GPU has recorded. With `ladj` a solution has it where it comes out of decoding.
    """
    captured = captured or Captured()
    x = only(mask, latents_of(flow, noise))
    for number, block in enumerate(reversed(flow.blocks)):
        solver = solvers[number] if solvers else Sequential()
        before = number * x.shape[1]
        block_report = None if report is None else lambda done, before=before: report(before + done)
        solution = invert(block.padded(mask), x, y, guidance, solver, block_report, captured, ladj)
        x = solution.x
        yield solution


def latents_of(flow: SequenceFlow, noise: Tensor) -> Tensor:
    """Standard normal noise (B, T, D) to latents of the flow, N(0, V): on its device, in the dtype of its state."""
    return flow.base.sample(noise.to(device=flow.device, dtype=torch.promote_types(flow.dtype, torch.float32)))


@torch.no_grad()
def invert(
    block: Block,
    z: Tensor,
    y: Value = None,
    guidance: Guidance | None = None,
    solver: Solver | None = None,
    report: Report | None = None,
    captured: Captured | None = None,
    ladj: bool = False,
) -> Solution:
    """Decode one block: z (B, T, D) in raster order and checked labels (B,) to x (B, T, D) in raster order.

    Its cache is gone when it returns, also when a step fails: there is never more than one block's. What a GPU has
    recorded goes with `captured`, or where there is none, too. None is the sequential solver. With `ladj` the solution
    has it where every token was predicted once, from what is returned: see `Recorded`.
    """
    z = block.enter(z)
    rows = guided_rows(guidance, len(z))
    if _on_gpu(block, z):
        replay = BlockReplay(captured or Captured(), block, y, guidance, len(z))
        plain = functools.cache(lambda: predictor(block, y, guidance, block.new_cache(rows)))  # where anybody needs it
        predict = Predict(lambda x, start: plain()(x, start), inverse_of(block, guidance), replay=replay)
    else:
        predict = predictor(block, y, guidance, block.new_cache(rows))
    recorded = Recorded(predict.evaluate)
    evaluate = recorded if ladj else predict.evaluate
    predict = dataclasses.replace(predict, evaluate=evaluate, dtype=_network_dtype(block), report=report)
    solution = (solver or Sequential()).solve(predict, z)
    if report is not None:
        report(block.config.tokens)
    known = recorded.ladj(block, solution.x) if ladj else None
    return dataclasses.replace(solution, x=block.unmixed(block.leave(solution.x)), ladj=known)


class Recorded:
    """What evaluates a block's conditioner, and keeps the parameters as long as they are of one token after the other.

    Where each of those tokens is what the solver returns in the end, these are the parameters of its density, too.
    Where a solver iterates, or a GPU replays steps, they are not known.
    """

    def __init__(self, evaluate: Callable[[Tensor, int], Tensor]) -> None:
        self.evaluate = evaluate
        self.steps: list[tuple[Tensor, Tensor]] | None = []

    def __call__(self, x: Tensor, start: int) -> Tensor:
        params = self.evaluate(x, start)
        if self.steps is not None and x.shape[1] == 1 and start == len(self.steps):
            self.steps.append((x.clone(), params.clone()))  # which may be written to by the next step
        else:
            self.steps = None
        return params

    def ladj(self, block: Block, x: Tensor) -> Tensor | None:
        """log|det ∂z/∂x| (B,) of the block at its solution x (B, S, D), in its own order; None where not known."""
        if not self.steps or len(self.steps) != x.shape[1] - 1:
            return x.new_zeros(len(x)) if x.shape[1] == 1 else None
        seen, params = (torch.cat(parts, dim=1) for parts in zip(*self.steps, strict=True))
        if not torch.equal(seen, x[:, :-1]):
            return None
        by_token = F.pad(block.transform.forward(x[:, 1:], params)[1], (1, 0))
        return block.leave(by_token).sum(dim=1)  # without those of padding


def _on_gpu(block: Block, z: Tensor) -> bool:
    """Whether what is evaluated can be captured: on CUDA, by what `DeviceStep` knows."""
    shared = not isinstance(block.order, Padded)  # one order for all rows
    return z.device.type == "cuda" and z.shape[1] > 1 and shared and DeviceStep.fits(block)


def _network_dtype(block: Block) -> torch.dtype:
    """In which a block computes its products: that of its weights, or that of an autocast around it all."""
    kind = block.position.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else block.product_dtype


def draw_noise(flow: SequenceFlow, indices: Tensor, seed: int, attempt: int = 0) -> Tensor:
    """Standard normal noise (b, T, D), float64 on the CPU; that of image k depends on (seed, k, attempt) only."""
    shape = (flow.sequence.tokens, flow.sequence.dim)
    return torch.stack([seeded_normal(shape, seed, "sample", int(k), attempt) for k in indices])


def draw_seed() -> int:
    """One number from torch's global generator, of the CPU, whatever the device: what a distribution draws by."""
    return int(torch.randint(SEEDS, (), device="cpu", dtype=torch.int64))


def default_batch_size(flow: SequenceFlow, guidance: Guidance | None) -> int:
    """How many images have room for the keys and values of their largest block, at least 1.

    The room is `CACHE_BYTES`, and on a GPU that has more, `CACHE_SHARE` of what is free. On a CPU more than `CPU_ROWS`
    sequences at once are no faster.
    """
    room = CACHE_BYTES
    if flow.device.type == "cuda":
        room = max(room, int(CACHE_SHARE * (free_bytes(flow.device) or 0)))
    slots = flow.conditions.places + flow.sequence.slots
    per_row = max(
        KVCache.bytes_needed(len(block.layers), 1, flow.sequence.width, slots, block.dtype) for block in flow.blocks
    )
    rows = room // per_row
    if flow.device.type == "cpu":
        rows = min(rows, CPU_ROWS)
    return max(1, rows // guided_rows(guidance, 1))
