"""What is measured: a flow with its weights, the noise and the labels that every side is given."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor, nn

from tarflow.checkpoint import open_run
from tarflow.config import TarFlowConfig
from tarflow.interop import load_official
from tarflow.model.block import Block
from tarflow.model.flow import TarFlow

MADE = ("fresh", "hard")
"""Weights that are made here; any other name is that of a run directory or of a file."""

HARD_ITERATIONS = (15, 20)  # per block: about what trained flows need, and beyond the reach of a lucky few
HARD_ROWS = 2  # images over which these are counted
HARD_TOLERANCE = 1e-4
HARD_LOG_SCALES = 0.1  # their outputs beside those of the shifts: at equal size other noise overflows over the blocks
SEED = 0


def open_flow(weights: str, config: TarFlowConfig, device: torch.device) -> TarFlow:
    """The flow in float32, in eval mode on `device`.

    Args:
        weights: "fresh", as a new flow starts: its output layers are zero, each block is constant, and a parallel
            solver is done at once. "hard": output layers scaled until Jacobi iteration needs `HARD_ITERATIONS` in every
            block. Else a run directory (or one step of a run), or a file: an official checkpoint, which says its own
            architecture, as `torch.save(tarflow.interop.to_official(flow), path)` makes one of a flow.
        config: of made weights; a run or a file brings its own.

    Raises:
        FileNotFoundError, ValueError: what is there does not fit; the message names it.
    """
    if weights not in MADE:
        path = Path(weights)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such run or file; expected one, or {' or '.join(MADE)}")
        flow = open_run(path, device).flow if path.is_dir() else load_official(path, device=device)
        return flow.to(torch.float32).eval().requires_grad_(False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(SEED)
        flow = TarFlow(config).eval().requires_grad_(False)
        if weights == "hard":
            harden(flow)
    return flow


def draw_noise(config: TarFlowConfig, images: int, device: torch.device) -> Tensor:
    """Standard normal noise (n, T, D), float32; a smaller batch gets the first rows of a larger one."""
    shape = (config.num_patches, config.patch_dim)
    noise = [  # on the CPU, so that it is the same on every device
        torch.randn(shape, generator=torch.Generator("cpu").manual_seed(SEED + k), device="cpu") for k in range(images)
    ]
    return torch.stack(noise).to(device)


def labels(config: TarFlowConfig, images: int, device: torch.device) -> Tensor | None:
    """The classes in turn, (n,); None without classes."""
    return torch.arange(images, device=device) % config.num_classes if config.num_classes else None


def first_decoded(flow: TarFlow, count: int) -> TarFlow:
    """A flow of the `count` blocks that decoding begins with, the last ones, which it shares with `flow`."""
    if count >= len(flow.blocks):
        return flow
    with torch.device("meta"):  # its own blocks are dropped
        part = TarFlow(dataclasses.replace(flow.config, layers=flow.config.layers[-count:]))
    part.blocks = nn.ModuleList(list(flow.blocks)[-count:])  # type: ignore[assignment]
    part.base = flow.base
    return part.eval().requires_grad_(False)


@torch.no_grad()
def harden(flow: TarFlow) -> None:
    """Give every block random outputs, of a size at which Jacobi iteration needs `HARD_ITERATIONS`.

    Found by bisection, block by block in the order of decoding, each on what the blocks before it leave.

    Raises ValueError where no size does it, as for sequences too short to need as many.
    """
    config, device = flow.config, flow.device
    low, high = HARD_ITERATIONS
    x = flow.base.sample(draw_noise(config, HARD_ROWS, device))
    y = labels(config, HARD_ROWS, device)
    for index, block in reversed(list(enumerate(flow.blocks))):
        nn.init.normal_(block.proj_out.weight, std=config.width**-0.5)
        direction = block.proj_out.weight.clone()
        if config.block_transforms[index] == "affine":
            direction[: config.patch_dim] *= HARD_LOG_SCALES
        bounds = [math.log(0.03), math.log(3)]
        for _ in range(12):
            middle = sum(bounds) / 2
            block.proj_out.weight.copy_(direction * math.exp(middle))
            solution, iterations = _jacobi(block, block.enter(x), y, at_most=high)
            if low <= iterations <= high:
                break
            bounds[0 if iterations < low else 1] = middle
        else:
            raise ValueError(
                f"weights hard: no outputs of block {index} need {low} to {high} iterations with {config.num_patches} "
                "patches; expected more patches, or another width"
            )
        x = block.leave(solution)


def _jacobi(block: Block, z: Tensor, y: Tensor | None, at_most: int) -> tuple[Tensor, int]:
    """Plain Jacobi iteration on a whole block, in its own order: x, and how many it took, at_most+1 if not enough.

    Deliberately not the solver that is measured: weights must not change with it.
    """
    context = block.context(y)
    x = z
    for count in range(1, at_most + 1):
        new = torch.cat([z[:, :1], block.transform.inverse(z[:, 1:], block.conditioner(x[:, :-1], context))], dim=1)
        change = ((new - x).abs() / x.abs().clamp(min=1)).amax()
        x = new
        if change <= HARD_TOLERANCE:
            return x, count
    return x, at_most + 1
