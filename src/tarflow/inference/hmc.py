"""Hamiltonian Monte Carlo, many chains at once: their gradients are one batch of the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.devices import without_autocast
from tarflow.fields import integer, real
from tarflow.inference.chains import Chains
from tarflow.inference.tuning import Tuning
from tarflow.inference.weights import LogDensity
from tarflow.seeding import seeded_generator

MOST_HALVINGS = 20
"""Of the first step size, until one of the chains that share it would take a step."""
LEAST_STEPS = 4
"""Kept of each chain, however late it is: what there are figures of."""

Progress = Callable[[float, Tensor], None]


@dataclass(frozen=True)
class HMCChains(Chains):
    """Chains of `hmc`, with the step size (chains,) and the scale (chains, d) of each number that warm-up found."""

    step_size: Tensor
    scale: Tensor


def hmc(
    log_density: LogDensity,
    start: Tensor,
    steps: int = 500,
    warmup: int = 300,
    leapfrog: int | None = None,
    step_size: float = 0.1,
    target: float = 0.8,
    seed: int = 0,
    *,
    pooled: int = 1,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> HMCChains:
    """Chains in exp(log_density), with step sizes and scales that warm-up finds, and that are fixed from then on.

        p ~ N(0, 1),  leapfrog steps of H(x, p) = -log π(s·x) + |p|²/2,  accepted with min(1, e^{H - H'})

    All chains take the same number of leapfrog steps, drawn anew each time from half to one and a half of the mean, so
    that no period of the dynamics is hit again and again. In warm-up dual averaging leads the step size to acceptance
    `target`; the scales s are the standard deviations within windows that double, after each of which a step goes on
    about as long as it was. Where `leapfrog` is None the mean number is such that they last a quarter of the period of
    the widest direction, (π/2)·√λ for the largest eigenvalue λ of the draws' correlations: shorter ones are a random
    walk.

    Args:
        log_density: (chains,) nats of x (chains, d), differentiable. -∞ or NaN is refused as a proposal.
        start: (chains, d), of a finite density. Not written to.
        steps: kept of each chain. warmup: before them, and not kept. step_size: the first one, in the
            units of x; halved where it leads nowhere.
        pooled: so many successive chains have one density, and share the step size and scales, which are found the
            sooner. A divisor of chains.
        seconds: the time that it may take, about. The warm-up ends after half of it at the latest, and the chains at
            the end of it, 4 steps after the warm-up at the earliest: `draws` has as many as there was time for. What is
            drawn depends on the machine then.
        progress: called after each step with the share that is done and the states (chains, d). What it raises ends it.

    Raises:
        ValueError: a start without a density, or arguments out of their range.

    Source: Neal, Handbook of Markov Chain Monte Carlo (2011), chapter 5, arXiv 1206.1901.

    >>> import torch
    >>> chains = hmc(lambda x: -0.5 * x.square().sum(1), torch.zeros(4, 2), steps=50, warmup=50)
    >>> chains.draws.shape, chains.acceptance.shape
    (torch.Size([50, 4, 2]), torch.Size([4]))
    """
    steps, warmup = integer("steps", steps, 1), integer("warmup", warmup, 0)
    leapfrog = None if leapfrog is None else integer("leapfrog", leapfrog, 1)
    seed, pooled = integer("seed", seed), integer("pooled", pooled, 1)
    first_size = real("step_size", step_size, "a positive number", lambda value: value > 0)
    target = real("target", target, "a number between 0 and 1", lambda value: 0 < value < 1)
    if seconds is not None:
        seconds = real("seconds", seconds, "a positive number", lambda value: value > 0)
    if start.ndim != 2 or not start.is_floating_point():
        raise ValueError(f"start: expected floating (chains, d), got {tuple(start.shape)} of {start.dtype}")
    if len(start) % pooled:
        raise ValueError(f"pooled: expected a divisor of the {len(start)} chains, got {pooled}")
    x = start.detach().clone()
    generator = seeded_generator(seed, "hmc")
    log_p, gradient = _value_and_gradient(log_density, x)
    if not bool(torch.isfinite(log_p).all()):
        row = int((~torch.isfinite(log_p)).nonzero()[0])
        raise ValueError(f"start: expected a finite log-density, got {float(log_p[row])} of chain {row}")
    momentum = _normal(x, generator)
    size = x.new_full((len(x), 1), first_size)
    for _ in range(MOST_HALVINGS):
        _, p, log_there, _ = _leapfrog(log_density, x, momentum, gradient, size, 1)
        change = log_there - log_p - 0.5 * (p.square() - momentum.square()).sum(dim=1)
        refused = ~(change.view(-1, pooled) > -1).any(dim=1).repeat_interleave(pooled)
        if not bool(refused.any()):
            break
        size = torch.where(refused.unsqueeze(1), size / 2, size)
    tuning = Tuning(x, size[::pooled, 0], target, leapfrog, pooled)
    clock = _Clock(seconds, steps, warmup)
    kept, accepted = [], torch.zeros_like(log_p)
    while not clock.ended:
        size = tuning.size.unsqueeze(1) * tuning.scale
        momentum = _normal(x, generator)
        mean = tuning.leapfrog
        fewest, most = mean - mean // 2, mean + mean // 2
        count = fewest + int(
            torch.rand((), generator=generator, device="cpu", dtype=torch.float64) * (most + 1 - fewest)
        )
        there, p, log_there, gradient_there = _leapfrog(log_density, x, momentum, gradient, size, count)
        change = log_there - log_p - 0.5 * (p.square() - momentum.square()).sum(dim=1)
        probability = torch.where(torch.isfinite(change), change.clamp(max=0).exp(), 0)
        taken = torch.rand(len(x), generator=generator, device="cpu", dtype=torch.float64).to(x) < probability
        x = torch.where(taken.unsqueeze(1), there, x)
        gradient = torch.where(taken.unsqueeze(1), gradient_there, gradient)
        log_p = torch.where(taken, log_there, log_p)
        warming = clock.warmed < 1
        clock.count()
        if warming:
            tuning.learn(x, probability, clock.warmed)
        else:
            kept.append(x)
            accepted += probability
        if progress is not None:
            progress(clock.share, x)
    return HMCChains(torch.stack(kept), accepted / len(kept), tuning.size, tuning.scale)


class _Clock:
    """How far the chains are, by steps, or by time where that is short.

    Attributes:
        warmed, share: of the warm-up, and of all, 0 … 1. ended: whether there is nothing left to do.
    """

    def __init__(self, seconds: float | None, steps: int, warmup: int) -> None:
        self.seconds, self.steps, self.warmup, self.began = seconds, steps, warmup, time.monotonic()
        self.walked = self.kept = 0
        self.warmed, self.share, self.ended = 0.0 if warmup else 1.0, 0.0, False

    def count(self) -> None:
        """One step was made."""
        spent = 0.0 if self.seconds is None else (time.monotonic() - self.began) / self.seconds
        if self.warmed < 1:
            self.walked += 1
            self.warmed = min(1.0, max(self.walked / self.warmup, 2 * spent))
        else:
            self.kept += 1
            late = spent >= 1 and self.kept >= LEAST_STEPS
            self.ended = late or self.kept == self.steps
        done = (self.walked + self.kept) / (self.warmup + self.steps)
        self.share = 1.0 if self.ended else min(0.99, max(done, spent))


def _leapfrog(
    log_density: LogDensity, x: Tensor, p: Tensor, gradient: Tensor, size: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`count` steps of `size` (chains, d) in x/s, whose gradient is s·∇: where they lead, and what is known there."""
    log_p = x.new_zeros(len(x))
    for _ in range(count):
        p = p + 0.5 * size * gradient
        x = x + size * p
        log_p, gradient = _value_and_gradient(log_density, x)
        p = p + 0.5 * size * gradient
    return x, p, log_p, gradient


def _value_and_gradient(log_density: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    """log π (chains,) and its gradient (chains, d), zeros in rows that have none."""
    with torch.inference_mode(False), torch.enable_grad(), without_autocast(x.device):
        x = x.detach().clone().requires_grad_()
        log_p = log_density(x)
        if log_p.shape != x.shape[:1]:
            raise ValueError(f"log_density: expected {tuple(x.shape[:1])}, one a chain, got {tuple(log_p.shape)}")
        (gradient,) = torch.autograd.grad(log_p.sum(), [x])
    return log_p.detach(), torch.where(torch.isfinite(gradient), gradient, 0)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device="cpu", dtype=torch.float64).to(like)
