"""Coordinates of a region in which its density is tame: what the first block makes of it, given the rest.

Where images have flat grounds numbers lie within thousandths in one place and across the whole range in another, and
which is which differs from image to image. The first block of a flow knows: it divides each token by the width that
those before it leave to it. So chains walk in its output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tarflow.devices import without_autocast
from tarflow.model.block import Block
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.implicit import evaluated
from tarflow.sampling.jacobi import LARGEST_GUESS

SETTLED = 32
"""Times the spacing of numbers: changes of tokens, relative to max(1, |x|), at which solving ends."""
EXACT = 1024
"""Times the spacing of numbers: changes relative to the largest of a row, at which solving for a gradient ends."""


class Region:
    """A region of events x (R, …) given the rest, as v (R, d): w = block_0(x) at tokens that lie in it as a whole.

        v = (w at whole tokens, x at other numbers of the region),    x = x(v) is triangular in the block's order,
        log p(v) = log p(x) - Σ_whole log|∂w_i/∂x_i| + const

    Args:
        x: what is given; in the region, any finite values. region: bool, an event's shape. c: checked, a row each.
        there: (R, T), of sequences with padding. What is padding in some rows is a number of v in all; the flow has no
            density for it, and it is given one, N(0, 1), that keeps it where it is.
        warped: whether there are whole tokens in this sense; without, or with padding, v are the tokens' numbers.

    Attributes:
        known: (R, T, D), the tokens of what is given. index: (d,), of v among their numbers. padded: (R, d), or None.
    """

    def __init__(
        self,
        flow: SequenceFlow,
        x: Tensor,
        region: Tensor,
        c: Any,
        *,
        there: Tensor | None = None,
        warped: bool = True,
    ) -> None:
        self.flow, self.c, self.there = flow, c, there
        free = flow.event.cut(region.unsqueeze(0).float())[0] > 0  # (T, D)
        with torch.no_grad():
            self.known = torch.where(free, 0, flow.event.to_tokens(x, there)[0])  # (R, T, D)
        self.whole = free.all(dim=1) & (warped and there is None)  # (T,)
        self.index = free.flatten().nonzero().squeeze(1)
        self.padded = None if there is None else ~there.unsqueeze(2).expand_as(self.known).flatten(1)[:, self.index]
        self.guess = self.known

    @torch.no_grad()
    def coordinates(self, x: Tensor) -> Tensor:
        """v (R, d) of events that may differ from what is given outside of the region: of what is in it alone.

        Whole tokens keep what the first block makes of them in their own surroundings.
        """
        tokens = self.flow.event.to_tokens(x, self.there)[0].to(self.known)
        if not bool(self.whole.any()):
            return tokens.flatten(1)[:, self.index]
        w, _ = self.flow.blocks[0].encode(tokens, self.c)
        return torch.where(self.whole.view(1, -1, 1), w, tokens).flatten(1)[:, self.index]

    def log_density(self, v: Tensor) -> Tensor:
        """log p(v) (R,) but for a constant, nats, with gradients to v."""
        x: Tensor = _Solved.apply(v, self)
        z, inside = self.flow.in_range(only(self.there, x))
        total = z.new_zeros(len(z))
        for number, block in enumerate(self.flow.blocks):
            z, ladj = block.padded(self.there).encode(z, self.c)
            total = total + (ladj.masked_fill(self.whole, 0) if number == 0 else ladj).sum(dim=1)
            z, still = self.flow.in_range(z)
            inside = inside & still
        total = total + only(self.there, self.flow.base.log_prob(z)).sum(dim=1)
        if self.padded is not None:
            total = total - 0.5 * torch.where(self.padded, v, 0).square().sum(dim=1)
        return torch.where(inside, total, -torch.inf)

    @torch.no_grad()
    def events(self, v: Tensor) -> Tensor:
        """x (R, …) of v (R, d)."""
        return self.flow.event.from_tokens(self.solve(v), self.there)

    def spread(self, v: Tensor) -> Tensor:
        """Tokens (R, T, D) of v: what it says of the region, and what is given elsewhere."""
        return self.known.flatten(1).index_copy(1, self.index, v).view_as(self.known)

    def solve(self, v: Tensor) -> Tensor:
        """Tokens x (R, T, D) of v: all at once from those that were found last, again until nothing changes.

        Each time one whole token more is exact, at least; mostly a few times do.
        """
        given, whole = self.spread(v), self.whole.view(1, -1, 1)
        if not bool(self.whole.any()):
            return given
        x = torch.where(whole, self.guess, given)
        for _ in range(int(self.whole.sum()) + 1):
            made = torch.where(whole, evaluated(self.flow.blocks[0], x, given, self.c), given)
            made = torch.where((made.abs() <= LARGEST_GUESS) | ~whole, made, 0)
            change = (made - x).abs() / made.abs().clamp(min=1)
            x = made
            if bool((change <= SETTLED * torch.finfo(x.dtype).eps).all()):
                break
        self.guess = x
        return x


class _Solved(torch.autograd.Function):
    """x (R, T, D) of v (R, d), and its gradient at the solution.

    There w_i = F(x_i, x_<i) for whole tokens, with B_i = ∂w_i/∂x_i and N = ∂w/∂x_<. Backwards a = g - Nᵀ b with
    b = B⁻ᵀ a, of which the last token is known at once, and one more each time. b is the gradient to w, and a that to
    other numbers.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, region: Region) -> Tensor:
        x = region.solve(v.detach())
        ctx.region = region
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        region: Region = ctx.region
        block, whole = region.flow.blocks[0], region.whole.view(1, -1, 1)
        a, b, least = g, torch.where(whole, g, 0), EXACT * torch.finfo(g.dtype).eps
        if not bool(region.whole.any()):
            return g.flatten(1)[:, region.index], None
        with torch.enable_grad(), without_autocast(x.device):
            own, before = x.detach().requires_grad_(), x.detach().requires_grad_()
            params = block.conditioner(block.enter(block.mixed(before))[:, :-1], block.context(region.c))
            steep = torch.linalg.inv_ex(_derivatives(block, own, params.detach()))[0]  # (R, T, D, D)
            w = _made(block, own.detach(), params)
            for _ in range(x.shape[1]):
                b = torch.where(whole, torch.einsum("rtji,rtj->rti", steep, a), 0)
                (pulled,) = torch.autograd.grad((w * b).sum(), [before], retain_graph=True, materialize_grads=True)
                change, a = (g - pulled - a).abs().flatten(1).amax(dim=1), g - pulled
                if bool((change <= least * a.abs().flatten(1).amax(dim=1)).all()):
                    break
        return torch.where(whole, b, a).flatten(1)[:, region.index], None


def _made(block: Block, x: Tensor, params: Tensor) -> Tensor:
    """w (R, T, D): what a block's transform makes of each token x with given parameters."""
    inside = block.enter(block.mixed(x))
    return block.leave(torch.cat([inside[:, :1], block.transform.forward(inside[:, 1:], params)[0]], dim=1))


def _derivatives(block: Block, x: Tensor, params: Tensor) -> Tensor:
    """∂w_ti/∂x_tj of each token, (R, T, D, D)."""
    w = _made(block, x, params)
    rows = [torch.autograd.grad(w[..., i].sum(), [x], retain_graph=True)[0] for i in range(x.shape[2])]
    return torch.stack(rows, dim=2)
