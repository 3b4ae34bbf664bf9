"""Any region drawn anew given the rest: exactly where the order of the blocks allows, else by Markov chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.inference.hmc import hmc
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.denoise import check_sigma
from tarflow.sampling.denoise import denoise as denoise_images
from tarflow.sampling.observed import common_order, futures
from tarflow.sampling.sample import sample
from tarflow.seeding import seeded_normal


@dataclass(frozen=True)
class Inpainted:
    """What `inpaint` drew, and what it is worth.

    Attributes:
        samples: (n, B, …), what was given outside of the mask, and draws within.
        exact: whether they are independent draws of p itself; else they are of Markov chains.
        acceptance: (B,), share of the proposals that were taken; 1 where exact.
        effective_sample_size: (B,), independent draws that all states of the chains are worth, for the number of the
            region that mixes worst; n where exact.
        rhat: (B,), of that number which has it the largest: above 1.05 the chains of this row have not met.
    """

    samples: Tensor
    exact: bool
    acceptance: Tensor
    effective_sample_size: Tensor
    rhat: Tensor

    def __str__(self) -> str:
        if self.exact:
            return f"{len(self.samples)} exact draws"
        return (
            f"{len(self.samples)} draws of Markov chains, acceptance {float(self.acceptance.mean()):.2f}, effective "
            f"sample size {float(self.effective_sample_size.amin()):.0f}, R-hat {float(self.rhat.amax()):.2f}"
        )


def inpaint(
    flow: SequenceFlow,
    x: Tensor,
    mask: Tensor,
    c: Any = None,
    n: int = 1,
    *,
    denoise: float | None = None,
    chains: int = 8,
    steps: int = 100,
    warmup: int = 300,
    leapfrog: int = 10,
    there: Tensor | None = None,
    seed: int = 0,
) -> Inpainted:
    """Draw a region of x given the rest of it: x_region ~ p(· | x_rest, c).

    Where all blocks walk in one order, and the rest are the first tokens of it, these are exact draws (as
    `flow.condition` gives). Elsewhere the conditional density is known but for its constant, p(x_region, x_rest | c),
    and Hamiltonian Monte Carlo (`hmc`) goes through it with the flow's exact score, all chains of all rows in one
    batch. Chains start at regions of fresh samples; `steps` states of each are kept after `warmup`, and n of all of
    them returned, evenly spaced: as many as there are chains are the last state of each. In the limit they are exact
    draws; how near they are, say the effective sample size and R-hat. `resample` is faster, and draws from another
    distribution.

    A model of noisy images (`denoise`: σ of its training) knows no clean rest. There the rest gets noise of its own in
    each chain, the region is drawn given that, and all of it is denoised; at last the rest is put back as it was. So
    the region is drawn given the rest as seen through the noise.

    Args:
        x: (B, …). Not written to; what it holds in the region does not count, as long as it is finite.
        mask: bool, an event's shape, or what broadcasts to it, as (H, W) of images: True where to draw.
        c: (B, …) values of the condition.
        n: draws for each row, at most chains·steps.
        leapfrog: evaluations of the score for each state, on average.
        there: (B, T) booleans, which tokens of a sequence are there: the others are padding, and 0 in all draws.

    Raises:
        ValueError: a mask of another shape or dtype, or with nothing to draw, or arguments that do not fit.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> x, mask = torch.rand(2, 1, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    >>> mask[2:5, 3:6] = True
    >>> drawn = tarflow.inpaint(flow, x, mask, n=3, chains=2, steps=4, warmup=4)
    >>> drawn.samples.shape, drawn.effective_sample_size.shape, drawn.exact
    (torch.Size([3, 2, 1, 8, 8]), torch.Size([2]), False)
    """
    n, seed, chains = integer("n", n, 1), integer("seed", seed), integer("chains", chains, 1)
    steps = integer("steps", steps, 4)
    if denoise is not None:
        check_sigma(denoise)
    flow.event.check(x)
    region, c, there = _region(flow, mask), flow.check_condition(c, len(x)), flow.check_mask(there, len(x))
    x = only(there, flow.as_state(x.detach().to(flow.device)))
    known = _known_tokens(flow, region)
    count = n if known is not None else chains
    rows, own = x.repeat_interleave(count, dim=0), flow.conditions.repeat(c, count)
    padding = None if there is None else there.repeat_interleave(count, dim=0)
    seen = rows
    if denoise is not None:
        noise = torch.stack([seeded_normal(x.shape[1:], seed, "inpaint", k) for k in range(len(rows))])
        seen = rows + denoise * noise.to(rows)
    if known is not None:
        drawn = futures(flow, seen, known, own, seed, mask=padding).unsqueeze(0)
        worth = [torch.full((len(x),), value, device="cpu", dtype=torch.float64) for value in (1.0, float(n), 1.0)]
    else:
        if n > chains * steps:
            raise ValueError(f"n: expected at most chains·steps = {chains * steps}, got {n}")
        drawn, worth = _walk(flow, seen, region, own, chains, steps, warmup, leapfrog, seed, padding)
        worth[1] = torch.where(worth[1].isinf(), float(n), worth[1])  # of a row with nothing to draw
    # (steps, B·count, …) to (count·steps, B, …), of which n are taken: evenly spaced, the last state among them
    drawn = drawn.unflatten(1, (len(x), count)).movedim(2, 0).flatten(0, 1)
    chosen = (_numbers(n, drawn.device) + 1) * len(drawn) // n - 1
    samples = drawn[chosen]
    if denoise is not None:
        index = _numbers(len(x), x.device).repeat(n)
        own, padding = flow.conditions.rows(c, index), None if there is None else there[index]
        samples = denoise_images(flow, samples.flatten(0, 1), denoise, own, mask=padding).unflatten(0, (n, len(x)))
    samples = torch.where(region, samples, x)
    if there is not None:
        samples = torch.where(there.unsqueeze(2), samples, 0)
    return Inpainted(samples, known is not None, *worth)


def _walk(
    flow: SequenceFlow,
    x: Tensor,
    region: Tensor,
    c: Any,
    chains: int,
    steps: int,
    warmup: int,
    leapfrog: int,
    seed: int,
    there: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:
    """Chains in the region of x (R, …), `chains` successive rows of each image: (steps, R, …), and their worth.

    What is padding in some rows is a number of the chains of all. The flow has no density for it, and the chains are
    given one, N(0, 1), that keeps it where it is; it does not count in what they are worth.
    """
    index = region.flatten().nonzero().squeeze(1)
    padded = None if there is None else ~there.unsqueeze(2).expand(x.shape).flatten(1)[:, index]

    def whole(free: Tensor) -> Tensor:
        return x.flatten(1).index_copy(1, index, free).view_as(x)

    def log_density(free: Tensor) -> Tensor:
        z, ladj = flow.encode_in_range(whole(free), c, there)
        log_p: Tensor = only(there, flow.base.log_prob(z) + ladj).sum(dim=1)
        return log_p if padded is None else log_p - 0.5 * torch.where(padded, free, 0).square().sum(dim=1)

    start = sample(flow, len(x), c, seed=seed, mask=there).to(x).flatten(1)[:, index]
    walked = hmc(log_density, start, steps, warmup, leapfrog, seed=seed)
    by_image = walked.draws.unflatten(1, (-1, chains))  # (steps, B, chains, free)
    by_image = by_image.transpose(1, 2)  # (steps, chains, B, free)
    each = type(walked)(by_image, walked.acceptance, walked.step_size, walked.scale)
    ess, rhat = each.effective_sample_size, each.rhat  # (B, free)
    # A number that never moved has neither: it is worth the one state that it is in.
    ess, rhat = ess.nan_to_num(nan=1.0), rhat.nan_to_num(nan=torch.inf)
    if padded is not None:
        ess, rhat = ess.masked_fill(padded[::chains], torch.inf), rhat.masked_fill(padded[::chains], 1.0)
    worst = [ess.amin(dim=1).cpu(), rhat.amax(dim=1).cpu()]
    acceptance = walked.acceptance.unflatten(0, (-1, chains)).mean(dim=1).cpu()
    with torch.no_grad():
        states = torch.stack([whole(free) for free in walked.draws])
    return states, [acceptance, *worst]


def _region(flow: SequenceFlow, mask: Tensor) -> Tensor:
    """The mask in the shape of an event, on the flow's device."""
    shape = flow.event.shape
    expected = f"a bool tensor {shape}, or of what broadcasts to it, with True where to draw"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask: expected {expected}, got {got}")
    try:
        region = mask.to(flow.device).expand(shape)
    except RuntimeError:
        raise ValueError(f"mask: expected {expected}, got {tuple(mask.shape)}") from None
    if not bool(region.any()):
        raise ValueError(f"mask: expected {expected}, got none that is True")
    return region


def _known_tokens(flow: SequenceFlow, region: Tensor) -> int | None:
    """How many tokens are given, where those are the first ones of all blocks' one order; None where they are not."""
    if common_order(flow) is None:
        return None
    tokens = flow.blocks[0].order.forward(flow.event.cut(region.unsqueeze(0).float()))[0]  # (T, D)
    drawn = tokens.amax(dim=1) > 0
    known = int((~drawn).long().cumprod(dim=0).sum())
    whole = bool(tokens[known:].all())
    return known if whole and (known or flow.sequence.start_token) else None


def _numbers(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device, dtype=torch.int64)
