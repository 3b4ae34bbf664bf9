"""Coordinates of a region in which its density is tame: what the first block makes of it, given the rest.

Where images have flat grounds numbers lie within thousandths in one place and across the whole range in another, and
which is which differs from image to image. The first block of a flow knows: it divides each number by the width that
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
from tarflow.sampling.guidance import predictor

EXACT = 1024
"""Times the spacing of numbers: changes relative to the largest of a row, at which solving for a gradient ends."""


class Region:
    """A region of events x (R, …) given the rest, as v (R, d): what the first block makes of it, number by number.

    The block walks the tokens in its order, and the numbers of a token in theirs (mixing, or a transform by number,
    lets each see those before). So x(v) is found on that walk: a given number stays, another is the inverse of the
    transform at its v. That is triangular, and with w = block_0(x), of which v are the numbers in the region,

        log p(v) = log p(x) - Σ_drawn log|∂w_i/∂x_i| + const
                 = log p_1…(w) + Σ_given log|∂w_i/∂x_i| + const        p_1…: the density of the other blocks

    Where nothing that is given comes behind a drawn number, w is v and a constant, and the first block is not asked.
    Noise makes a density smooth: of noisy images v are better the numbers of x themselves.

    Args:
        x: what is given; in the region, any finite values. region: bool, an event's shape. c: checked, a row each.
        there: (R, T), of sequences with padding. What is padding in some rows is a number of v in all; the flow has no
            density for it, and it is given one, N(0, 1), that keeps it where it is.
        warped: without it v are the numbers of x.

    Attributes:
        free: (R, T, D), what is drawn. known: (R, T, D), the tokens of what is given.
        index: (d,), of v among the numbers of all tokens. padded: (R, d), or None.
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
        self.flow, self.c, self.there, self.warped = flow, c, there, warped
        self.block = flow.blocks[0].padded(there)
        drawn = flow.event.cut(region.unsqueeze(0).float())[0] > 0  # (T, D)
        self.index = drawn.flatten().nonzero().squeeze(1)
        with torch.no_grad():
            tokens = flow.event.to_tokens(x, there)[0]
            self.free = drawn.expand_as(tokens) if there is None else drawn & there.unsqueeze(2)
            self.known = torch.where(self.free, 0, tokens)
            # (R, T, D), right up to the first number that is drawn
            self.given = self.block.encode(self.known, c)[0] if warped else self.known
        self.padded = None if there is None else ~there.unsqueeze(2).expand_as(tokens).flatten(1)[:, self.index]
        own = self.block.enter(self.free.to(tokens.dtype)) > 0  # (R, S, D), in the block's own order
        begins = own & ~own.roll(1, 2)
        begins[:, :, 0] = own[:, :, 0]
        self.runs = begins.sum(dim=2).amax(dim=0).tolist()  # of each slot, stretches of numbers that are drawn
        ahead = own.flatten(1).cumsum(dim=1) > 0
        exists = self.block.enter(only(there, torch.ones_like(tokens))) > 0
        behind = bool((ahead & (exists & ~own).flatten(1)).any())
        self.behind = warped and behind  # whether w changes where something is given

    @torch.no_grad()
    def coordinates(self, x: Tensor) -> Tensor:
        """v (R, d) of events that may differ from what is given outside of the region: of what is in it alone.

        Numbers keep what the first block makes of them in their own surroundings.
        """
        tokens = self.flow.event.to_tokens(x, self.there)[0].to(self.known)
        w = self.block.encode(tokens, self.c)[0] if self.warped else tokens
        return w.flatten(1)[:, self.index]

    def log_density(self, v: Tensor) -> Tensor:
        """log p(v) (R,) but for a constant, nats, with gradients to v."""
        w, total = self._spread(v, self.given), v.new_zeros(len(v))
        if self.behind:
            x, inside = self.flow.in_range(self.solve(v.detach()))
            w, ladj = _Given.apply(v, x, self)
            total = torch.where(inside, ladj, -torch.inf)
        z, inside = self.flow.in_range(w)
        total = torch.where(inside, total, -torch.inf)
        for block in self.flow.blocks[self.warped :]:
            z, ladj = block.padded(self.there).encode(z, self.c)
            z, inside = self.flow.in_range(z)
            total = torch.where(inside, total + ladj.sum(dim=1), -torch.inf)
        total = total + only(self.there, self.flow.base.log_prob(z)).sum(dim=1)
        if self.padded is not None:
            total = total - 0.5 * torch.where(self.padded, v, 0).square().sum(dim=1)
        return total

    @torch.no_grad()
    def events(self, v: Tensor) -> Tensor:
        """x (R, …) of v (R, d)."""
        return self.flow.event.from_tokens(self.solve(v), self.there)

    @torch.no_grad()
    def solve(self, v: Tensor) -> Tensor:
        """Tokens x (R, T, D) of v, one after the other by the block's cached steps; given ones go in together."""
        if not self.warped:
            return self._spread(v, self.known)
        block = self.block
        x, w, free = (block.enter(t) for t in (self.known, self._spread(v, self.known), self.free.to(self.known.dtype)))
        x, free = x.clone(), free > 0
        inside = block.mixed(x).clone()
        predict, seen, params = predictor(block, self.c, None, block.new_cache(len(v))), 0, None
        for slot, runs in enumerate(self.runs):
            if not runs:
                continue
            here = slice(slot, slot + 1)
            if slot:
                params, seen = predict(inside[:, seen:slot], seen)[:, -1:], slot
            for _ in range(runs):  # of which one more is right each time
                made = inside[:, here]
                target = torch.where(free[:, here], w[:, here], _transformed(block, made, params)[0])
                made = target if params is None else block.transform.inverse(target, params)
                x[:, here] = torch.where(free[:, here], block.unmixed(made), x[:, here])
                inside[:, here] = block.mixed(x[:, here])
        return block.leave(x)

    def _spread(self, v: Tensor, others: Tensor) -> Tensor:
        """(R, T, D): v at the numbers that are drawn, and others elsewhere."""
        spread = others.flatten(1).index_copy(1, self.index, v.to(others.dtype)).view_as(others)
        return spread if self.padded is None else torch.where(self.free, spread, others)


class _Given(torch.autograd.Function):
    """w (R, T, D), and Σ_given log|∂w_i/∂x_i| (R,), of v and of its x (R, T, D); w at drawn numbers is v.

    Backwards: what is given depends on x, by h, and x on v, where v = F(x) at drawn numbers. With A = ∂F/∂x there,
    triangular, b = A⁻ᵀ h is to be added to the gradient. b ← b + B⁻ᵀ (h - Aᵀ b), B the part of A within tokens, has one
    token more right each time, from the last one on.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, x: Tensor, region: Region) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.w, ladj, ctx.params = _encoded(region.block, ctx.x, region.c)
            ctx.ladj = torch.where(region.free, 0, ladj).sum(dim=(1, 2))
        ctx.region = region
        return region._spread(v, ctx.w.detach()), ctx.ladj.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_w: Tensor, by_ladj: Tensor) -> tuple[Tensor, None, None]:
        region, x, w = ctx.region, ctx.x, ctx.w
        free, least = region.free, EXACT * torch.finfo(by_w.dtype).eps
        with torch.enable_grad(), without_autocast(x.device):
            given = (w * torch.where(free, 0, by_w)).sum() + (ctx.ladj * by_ladj).sum()
            (h,) = torch.autograd.grad(given, [x], retain_graph=True)
            rest, b = torch.where(free, h, 0), torch.zeros_like(h)
            steep = torch.linalg.inv_ex(_within(region, x, ctx.params.detach()))[0].mT
            for _ in range(x.shape[1]):
                change = torch.where(free, (steep @ rest.unsqueeze(3)).squeeze(3), 0)
                b = b + change
                settled = change.abs().flatten(1).amax(dim=1) <= least * (by_w + b).abs().flatten(1).amax(dim=1)
                if bool(settled.all()):
                    break
                (pulled,) = torch.autograd.grad((w * b).sum(), [x], retain_graph=True)
                rest = torch.where(free, h - pulled, 0)
        return (torch.where(free, by_w, 0) + b).flatten(1)[:, region.index], None, None


def _encoded(block: Block, x: Tensor, c: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What a block makes of tokens x: z and its ladj by number, (R, T, D) each, and the parameters that it predicts."""
    inside = block.enter(block.mixed(x))
    params = block.conditioner(inside[:, :-1], block.context(c))
    z, ladj = _transformed(block, inside, params)
    return block.leave(z), block.leave(ladj), params


def _transformed(block: Block, inside: Tensor, params: Tensor | None) -> tuple[Tensor, Tensor]:
    """z and ladj by number of mixed tokens (R, n, D) in the block's order; a first one without parameters stays."""
    if params is None:
        return inside, torch.zeros_like(inside)
    first = inside[:, : inside.shape[1] - params.shape[1]]
    z, ladj = block.transform.forward_by_number(inside[:, first.shape[1] :], params)
    return torch.cat([first, z], dim=1), torch.cat([torch.zeros_like(first), ladj], dim=1)


def _within(region: Region, x: Tensor, params: Tensor) -> Tensor:
    """∂w_ti/∂x_tj of the numbers that are drawn in each token, (R, T, D, D); the identity at others."""
    block, slots = region.block, [slot for slot, runs in enumerate(region.runs) if runs]
    own = block.enter(x.detach())[:, slots].requires_grad_()
    # A first slot without a start token has no parameters, and stays as it is.
    w = _transformed(block, block.mixed(own), params[:, [slot - 1 for slot in slots if slot]])[0]
    rows = [torch.autograd.grad(w[..., i].sum(), [own], retain_graph=True)[0] for i in range(x.shape[2])]
    eye = torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    within = eye.repeat(len(x), len(region.runs), 1, 1)
    within[:, slots] = torch.stack(rows, dim=2)
    both = region.free.unsqueeze(3) & region.free.unsqueeze(2)
    return torch.where(both, block.leave(within), eye)
