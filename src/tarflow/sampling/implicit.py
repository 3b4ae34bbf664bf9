"""Decoding with gradients: a fast solver finds what each block makes, and the gradient follows at its solution.

Whoever differentiates a decode token by token walks back T steps and keeps them all. But what a solver found is
x = G(x, z), one parallel evaluation of the block, whoever found it and however. So

    dx = (I - ∂G/∂x)⁻¹ (∂G/∂z dz + ∂G/∂θ dθ)

and backwards, for a gradient g of x, w = g + (∂G/∂x)ᵀ w gives g_z = (∂G/∂z)ᵀ w and g_θ = (∂G/∂θ)ᵀ w. ∂G/∂x is strictly
triangular in the block's own order, so that iterating ends at the exact w after T-1 times at most, and mostly long
before: each time at least one token more is final, from the last one on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tarflow.devices import without_autocast
from tarflow.model.block import Block
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.decode import default_batch_size, invert
from tarflow.sampling.denoise import graph_bytes, graph_room
from tarflow.sampling.solver import Solver, solver_of

SETTLED = 16
"""Times the spacing of numbers: changes of w, relative to its largest number in a row, at which iterating ends."""


def decode_with_gradients(
    flow: SequenceFlow, z: Tensor, c: Any = None, solver: Solver | str = "auto", mask: Tensor | None = None
) -> Tensor:
    """Latents z (B, T, D) to x (B, T, D), the tokens, with gradients to z, to c and to the weights.

    What is kept for the gradient is what goes into each block and what comes out; one evaluation of a block is made
    again, for as many rows at once as `denoise` differentiates. Gradients are those of the exact decode at the latents
    that x really has: with a solver that iterates, within its tolerance of z. They are no functions to differentiate
    again.

    Args:
        c, mask: checked values of the condition, and which tokens are there; x is 0 elsewhere.
    """
    solver, z = solver_of(solver), only(mask, flow.as_state(z))
    size = min(default_batch_size(flow, None), max(1, graph_room(flow) * len(flow.blocks) // graph_bytes(flow)))
    solvers = solver.by_block(flow, None, min(size, max(1, len(z))), max(1.0, len(z) / size))
    parts = []
    for first in range(0, len(z), size):
        rows = slice(first, first + size)
        x, own = z[rows], flow.conditions.rows(c, rows)
        there = None if mask is None else mask[rows]
        for block, each in zip(reversed(flow.blocks), solvers, strict=True):
            x = _Inverted.apply(block.padded(there), each, own, x, *_tensors(own), *block.parameters())
        parts.append(x)
    return torch.cat(parts) if parts else z


class _Inverted(torch.autograd.Function):
    """One block inverted: x (B, T, D) from z, with gradients to z, to the tensors of its condition and its weights."""

    @staticmethod
    def forward(ctx: Any, block: Block, solver: Solver, c: Any, z: Tensor, *tensors: Tensor) -> Tensor:
        x = invert(block, z, c, solver=solver).x
        ctx.block, ctx.c = block, c
        ctx.save_for_backward(z, x, *tensors)  # and so a weight that was written to since is an error
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, x, *tensors = ctx.saved_tensors
        block, wanted = ctx.block, ctx.needs_input_grad[3:]
        count = len(list(_tensors(ctx.c)))
        with torch.enable_grad(), without_autocast(x.device):
            z, x = z.detach().requires_grad_(), x.detach().requires_grad_()
            own = [
                t.detach().requires_grad_(want) for t, want in zip(tensors[:count], wanted[1 : 1 + count], strict=True)
            ]
            inputs = [z, *own, *tensors[count:]]
            y = evaluated(block, x, z, _replaced(ctx.c, iter(own)))
            w = _solved(y, x, g)
            asked = [t for t, want in zip(inputs, wanted, strict=True) if want]
            found = iter(torch.autograd.grad((y * w).sum(), asked, allow_unused=True) if asked else ())
        return (None, None, None, *(next(found) if want else None for want in wanted))


def evaluated(block: Block, x: Tensor, z: Tensor, c: Any) -> Tensor:
    """G(x, z) (B, T, D): each token made of its latent and of the tokens of x before it, all at once."""
    inside, latents = block.enter(block.mixed(x)), block.enter(z)
    params = block.conditioner(inside[:, :-1], block.context(c))
    made = block.transform.inverse(latents[:, 1:], params)
    return block.unmixed(block.leave(torch.cat([latents[:, :1], made], dim=1)))


def _solved(y: Tensor, x: Tensor, g: Tensor) -> Tensor:
    """w = g + (∂y/∂x)ᵀ w, by iteration: exact after as many times as there are tokens that others depend on."""
    w = new = g
    least = SETTLED * torch.finfo(g.dtype).eps
    for _ in range(x.shape[1]):
        # Of a sum and not of y by w, for which PyTorch imports what it prints symbols with.
        (pulled,) = torch.autograd.grad((y * w).sum(), [x], retain_graph=True, materialize_grads=True)
        new = g + pulled
        change = (new - w).abs().flatten(1).amax(dim=1)
        # What overflows on the way would reach, as 0·∞, tokens that do not depend on it.
        w = torch.where(torch.isfinite(new), new, 0)
        if bool((change <= least * new.abs().flatten(1).amax(dim=1)).all()):
            return new
    return new


def _tensors(c: Any) -> Iterator[Tensor]:
    """The tensors that values of a condition consist of."""
    if isinstance(c, Tensor):
        yield c
    elif isinstance(c, tuple):
        for part in c:
            yield from _tensors(part)


def _replaced(c: Any, tensors: Iterator[Tensor]) -> Any:
    """The same values of other tensors."""
    if isinstance(c, tuple):
        return tuple(_replaced(part, tensors) for part in c)
    return next(tensors) if isinstance(c, Tensor) else c
