"""Hamiltonian Monte Carlo, many chains at once: their gradients are one batch of the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.devices import without_autocast
from tarflow.fields import integer, real
from tarflow.inference.chains import Chains
from tarflow.inference.weights import LogDensity
from tarflow.seeding import seeded_generator

# Dual averaging: Hoffman and Gelman, JMLR 15 (2014), section 3.2, whose constants these are.
SHRINKAGE, EARLY, FORGETTING = 0.05, 10.0, 0.75
WINDOWS = (1, 2, 4, 8, 12)
"""Sixteenths of the warm-up, after each of which the scales are those of the draws since the one before."""
LEAST_DRAWS = 10
"""Draws from which scales are estimated at least."""


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
    leapfrog: int = 10,
    step_size: float = 0.1,
    target: float = 0.8,
    seed: int = 0,
) -> HMCChains:
    """Chains in exp(log_density), each with a step size and scales of its own, found in warm-up and fixed from then on.

        p ~ N(0, 1),  leapfrog steps of H(x, p) = -log π(s·x) + |p|²/2,  accepted with min(1, e^{H - H'})

    All chains take the same number of leapfrog steps, drawn anew each time from leapfrog/2 … 3·leapfrog/2, so that no
    period of the dynamics is hit again and again. In warm-up dual averaging leads the step size of each chain to
    acceptance `target`; the scales s are the standard deviations within windows that double, after each of which the
    step size is sought anew.

    Args:
        log_density: (chains,) nats of x (chains, d), differentiable. -∞ or NaN is refused as a proposal.
        start: (chains, d), of a finite density. Not written to.
        steps: kept of each chain. warmup: before them, and not kept. step_size: the first one, in the units of x.

    Raises:
        ValueError: a start without a density, or arguments out of their range.

    Source: Neal, Handbook of Markov Chain Monte Carlo (2011), chapter 5, arXiv 1206.1901.

    >>> import torch
    >>> chains = hmc(lambda x: -0.5 * x.square().sum(1), torch.zeros(4, 2), steps=50, warmup=50)
    >>> chains.draws.shape, chains.acceptance.shape
    (torch.Size([50, 4, 2]), torch.Size([4]))
    """
    steps, warmup = integer("steps", steps, 1), integer("warmup", warmup, 0)
    leapfrog, seed = integer("leapfrog", leapfrog, 1), integer("seed", seed)
    first_size = real("step_size", step_size, "a positive number", lambda value: value > 0)
    target = real("target", target, "a number between 0 and 1", lambda value: 0 < value < 1)
    if start.ndim != 2 or not start.is_floating_point():
        raise ValueError(f"start: expected floating (chains, d), got {tuple(start.shape)} of {start.dtype}")
    x = start.detach().clone()
    generator = seeded_generator(seed, "hmc")
    log_p, gradient = _value_and_gradient(log_density, x)
    if not bool(torch.isfinite(log_p).all()):
        row = int((~torch.isfinite(log_p)).nonzero()[0])
        raise ValueError(f"start: expected a finite log-density, got {float(log_p[row])} of chain {row}")
    scale = torch.ones_like(x)
    tuning = _DualAveraging(x.new_full((len(x),), first_size), target)
    spread, windows = _Spread(x), [warmup * part // 16 for part in WINDOWS]
    kept, accepted = [], torch.zeros_like(log_p)
    for step in range(warmup + steps):
        if step == warmup and warmup:
            tuning.settle()
        size = (tuning.size.unsqueeze(1) * scale).detach()
        momentum = _normal(x, generator)
        fewest, most = leapfrog - leapfrog // 2, leapfrog + leapfrog // 2
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
        if step < warmup:
            tuning.update(probability)
            spread.add(x)
            if step + 1 in windows and spread.count >= LEAST_DRAWS:
                scale, spread = spread.deviation(), _Spread(x)
                tuning = _DualAveraging(torch.ones_like(tuning.size) * x.shape[1] ** -0.25, target)
        else:
            kept.append(x)
            accepted += probability
    return HMCChains(torch.stack(kept), accepted / steps, tuning.size, scale)


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


class _DualAveraging:
    """The step size (chains,) that leads the probability of acceptance to a target."""

    def __init__(self, size: Tensor, target: float) -> None:
        self.size, self.target = size, target
        self.aim = (10 * size).log()
        self.error, self.log_mean, self.count = torch.zeros_like(size), torch.zeros_like(size), 0

    def update(self, probability: Tensor) -> None:
        self.count += 1
        share = 1 / (self.count + EARLY)
        self.error = (1 - share) * self.error + share * (self.target - probability)
        log_size = self.aim - self.count**0.5 / SHRINKAGE * self.error
        weight = self.count**-FORGETTING
        self.log_mean = weight * log_size + (1 - weight) * self.log_mean
        self.size = log_size.exp()

    def settle(self) -> None:
        """From now on the mean of the last ones, which no longer swings."""
        if self.count:
            self.size = self.log_mean.exp()


class _Spread:
    """Variances of each number of each chain, gathered step by step (Welford)."""

    def __init__(self, x: Tensor) -> None:
        self.count, self.mean, self.sum = 0, torch.zeros_like(x), torch.zeros_like(x)

    def add(self, x: Tensor) -> None:
        self.count += 1
        change = x - self.mean
        self.mean = self.mean + change / self.count
        self.sum = self.sum + change * (x - self.mean)

    def deviation(self) -> Tensor:
        """Standard deviations, drawn a little towards the geometric mean of their chain: they are of few draws."""
        variance = self.sum / (self.count - 1)
        smallest = torch.finfo(variance.dtype).tiny ** 0.5
        log_variance = variance.clamp(min=smallest).log()
        trust = self.count / (self.count + 5)
        common = log_variance.mean(dim=1, keepdim=True)
        return (0.5 * (trust * log_variance + (1 - trust) * common)).exp()
