"""Any region drawn anew given the rest: exactly where the order of the blocks allows, else by Markov chains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.inference.chains import effective_sample_size, rhat, rhat_bound
from tarflow.inference.hmc import LEAST_STEPS, Progress, hmc
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.denoise import check_sigma
from tarflow.sampling.denoise import denoise as denoise_images
from tarflow.sampling.observed import common_order, futures
from tarflow.sampling.region import Region
from tarflow.sampling.sample import sample
from tarflow.seeding import seeded_normal

ENOUGH = 20
"""Independent draws a chain: whose R-hat longer chains may have, of which each draw is worth less."""
LEAST_STEPS_MET, LEAST_WORTH = 10, 10
"""States of each chain, and independent draws that all are worth, below which nothing can be said of mixing."""
TARGET = 0.85
"""Acceptance that is aimed at: at 0.65, the best of long chains, half a digit is worth half as much."""


@dataclass(frozen=True)
class Inpainted:
    """What `inpaint` drew, and what it is worth.

    Attributes:
        samples: (n, B, …), what was given outside of the mask, and draws within.
        exact: whether they are independent draws of p itself; else they are of Markov chains.
        acceptance: (B,), share of the proposals that were taken; 1 where exact.
        effective_sample_size: (B,), independent draws that all states of the chains are worth, for the number of the
            region that mixes worst; n where exact.
        rhat: (B,), of that number which has it the largest: above `bound` the chains of this row have not met.
        bound: what the largest R-hat of all numbers stays below, 99 times of 100, where chains draw independently: as
            many draws as these have states, at most 20 (`rhat_bound`). 1 where exact or too short to say.
    """

    samples: Tensor
    exact: bool
    acceptance: Tensor
    effective_sample_size: Tensor
    rhat: Tensor
    bound: float = 1.0

    @property
    def mixed(self) -> bool:
        """Whether chains have met, and been on their way for a while; always where the draws are exact."""
        worth, apart = float(self.effective_sample_size.amin()), float(self.rhat.amax())
        return self.exact or (apart <= self.bound and worth >= LEAST_WORTH)

    @property
    def verdict(self) -> str:
        """What these figures mean, in a sentence or two."""
        if self.exact:
            return "These are independent draws of the model's own distribution given the rest."
        worth, apart = float(self.effective_sample_size.amin()), float(self.rhat.amax())
        if not self.mixed:
            wanted = f"at most {self.bound:.3g} is wanted" if self.bound > 1 else "of too few states to tell"
            return (
                f"The chains have not mixed (R-hat {apart:.3g}, {wanted}; worth {worth:.0f} "
                "independent draws): what is drawn may depend on where its chain began, and how often it "
                "is drawn says little. More time helps."
            )
        return f"The chains have mixed (R-hat {apart:.2f}): their states are worth about {worth:.0f} independent draws."

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
    warmup: int = 100,
    leapfrog: int | None = None,
    there: Tensor | None = None,
    seed: int = 0,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Inpainted:
    """Draw a region of x given the rest of it: x_region ~ p(· | x_rest, c).

    Where all blocks walk in one order, and the rest are the first tokens of it, these are exact draws (as
    `flow.condition` gives). Elsewhere the conditional density is known but for its constant, p(x_region, x_rest | c),
    and Hamiltonian Monte Carlo (`hmc`) goes through it with the flow's exact score, all chains of all rows in one
    batch. Chains start at regions of fresh samples; `steps` states of each are kept after `warmup`, and n of all of
    them returned, evenly spaced: as many as there are chains are the last state of each. In the limit they are exact
    draws; how near they are, say the effective sample size and R-hat. `resample` is faster, and draws from another
    distribution.

    A model of noisy images (`denoise`: σ of its training) knows no clean rest. There the rest of each row gets noise
    once, the region is drawn given that, and all of it is denoised; at last the rest is put back as it was. So the
    region is drawn given the rest as seen through that noise, which is one for all chains of a row: with noise of their
    own they would draw from different densities, and could never meet.

    Args:
        x: (B, …). Not written to; what it holds in the region does not count, as long as it is finite.
        mask: bool, an event's shape, or what broadcasts to it, as (H, W) of images: True where to draw.
        c: (B, …) values of the condition.
        n: draws for each row, at most chains·steps.
        leapfrog: evaluations of the score for each state, on average; None is what warm-up finds.
        there: (B, T) booleans, which tokens of a sequence are there: the others are padding, and 0 in all draws.
        seconds: the time that the chains may take, about. They end after fewer steps where it is short, at least 4; so
            n is then at most 4·chains.
        progress: called with the share that is done, 0 … 1, and the events (B·chains, …) that chains are at, the chains
            of each row side by side and as the model sees them. What it raises ends the drawing.

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
    known, bound = _known_tokens(flow, region), 1.0
    count = n if known is not None else chains
    rows, own = x.repeat_interleave(count, dim=0), flow.conditions.repeat(c, count)
    padding = None if there is None else there.repeat_interleave(count, dim=0)
    seen = rows
    if denoise is not None:
        noise = torch.stack([seeded_normal(x.shape[1:], seed, "inpaint", k) for k in range(len(x))])
        seen = (x + denoise * noise.to(x)).repeat_interleave(count, dim=0)
    if known is not None:
        drawn = futures(flow, seen, known, own, seed, mask=padding).unsqueeze(0)
        worth = [torch.full((len(x),), value, device="cpu", dtype=torch.float64) for value in (1.0, float(n), 1.0)]
    else:
        least = steps if seconds is None else min(steps, LEAST_STEPS)
        if n > chains * least:
            raise ValueError(f"n: expected at most chains·steps = {chains * least}, got {n}")
        options = {"steps": steps, "warmup": warmup, "leapfrog": leapfrog, "seed": seed, "seconds": seconds}
        place = Region(flow, seen, region, own, there=padding, warped=denoise is None)
        drawn, worth = _walk(place, chains, progress, options)
        if len(drawn) >= LEAST_STEPS_MET:
            bound = rhat_bound(min(len(drawn), ENOUGH), chains, len(place.index) * len(x))
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
    acceptance, independent, apart = worth
    return Inpainted(samples, known is not None, acceptance, independent, apart, bound)


def _walk(
    place: Region, chains: int, progress: Progress | None, options: dict[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """Chains in a region, `chains` successive rows of each image: (steps, R, …), and their worth."""
    flow, c, there = place.flow, place.c, place.there
    start = place.coordinates(sample(flow, len(place.known), c, seed=options["seed"], mask=there))
    told = None if progress is None else lambda share, v: progress(share, place.events(v))
    walked = hmc(place.log_density, start, target=TARGET, pooled=chains, progress=told, **options)
    states = torch.stack([place.events(v) for v in walked.draws])
    # The figures are of the numbers of x, whatever the chains walked in: (steps, chains, B, free)
    tokens = torch.stack([flow.event.to_tokens(x, there)[0].flatten(1)[:, place.index] for x in states])
    free = tokens.unflatten(1, (-1, chains)).transpose(1, 2)
    # A number that never moved has neither: it is worth the one state that it is in.
    ess, apart = effective_sample_size(free).nan_to_num(nan=1.0), rhat(free).nan_to_num(nan=torch.inf)
    if place.padded is not None:
        padded = place.padded[::chains]
        ess, apart = ess.masked_fill(padded, torch.inf), apart.masked_fill(padded, 1.0)
    acceptance = walked.acceptance.unflatten(0, (-1, chains)).mean(dim=1).cpu()
    return states, [acceptance, ess.amin(dim=1).cpu(), apart.amax(dim=1).cpu()]


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
