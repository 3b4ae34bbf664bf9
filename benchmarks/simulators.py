"""Three tasks of simulation-based inference, and exact draws of their posteriors to compare with.

As in sbi's benchmark (Lueckmann et al., arXiv 2101.04653), a simulator gives data x for parameters θ of a prior:

- `two moons`: 2 parameters, uniform in (-1, 1), given 2 numbers; two crescents;
- `SLCP`: 5 parameters, uniform in (-3, 3), given four points in the plane: a simple likelihood, a complex posterior;
- `Gaussian linear`: 10 parameters, normal with variance 0.1, seen through noise of variance 0.1.

No reference is a Markov chain. That of two moons turns draws of the noise back into parameters, that of the Gaussian
task is its formula, and that of SLCP is drawn from a grid in its three parameters of the covariance and corrected by
rejection, the other two being normal given these. `tests/benchmarks/test_posteriors.py` has ranks of truths among them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.conditions import slcp, two_moons

GRID = 64  # points in each of the three parameters of SLCP's covariance
SPREAD = 0.1**0.5  # deviation of the prior and of the noise of the Gaussian task
Simulate = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
Reference = Callable[[Tensor, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Task:
    """A simulator and its posterior.

    Attributes:
        simulate: n parameters (n, d) of the prior and their data (n, k), from a generator.
        reference: n exact draws (n, d) of the posterior given data (k,).
        bound: the prior is uniform in (-bound, bound); None where it is normal.
    """

    simulate: Simulate
    reference: Reference
    bound: float | None


def gaussian_linear(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Parameters (n, 10), and the same through noise."""
    theta = SPREAD * torch.randn(n, 10, generator=generator)
    return theta, theta + SPREAD * torch.randn(n, 10, generator=generator)


def gaussian_posterior(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Normal around x/2, with half of the variance of the prior."""
    return x / 2 + SPREAD / 2**0.5 * torch.randn(n, len(x), generator=generator)


def moons_posterior(x: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """What is left of x without a draw p of the crescent is (-|θ₁ + θ₂|, θ₂ - θ₁)/√2, a map of constant Jacobian.

    Both signs of θ₁ + θ₂ are as likely; what lies outside of the prior, or has no such θ, is drawn again.
    """
    kept: list[Tensor] = []
    while sum(map(len, kept)) < n:
        angle = math.pi * (torch.rand(4 * n, generator=generator) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(4 * n, generator=generator)
        left = x - torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], dim=1)
        sign = torch.where(torch.rand(4 * n, generator=generator) < 0.5, -1.0, 1.0)
        total, difference = sign * left[:, 0], left[:, 1]
        theta = torch.stack([total - difference, total + difference], dim=1) / math.sqrt(2)
        kept.append(theta[(left[:, 0] <= 0) & (theta.abs() < 1).all(dim=1)])
    return torch.cat(kept)[:n]


def slcp_log_density(shape: Tensor, points: Tensor) -> Tensor:
    """log p(log|θ₃|, log|θ₄|, θ₅ | x), whatever the mean, but for a constant, of shapes (n, 3) and points x (4, 2).

    With S the scatter of the points and Σ the covariance: -3/2 log|Σ| - ½ tr Σ⁻¹S, and the Jacobian of the logarithms.
    """
    first, second = (2 * shape[:, :2]).exp().unbind(dim=1)
    correlation = shape[:, 2].tanh()
    away = points - points.mean(dim=0)
    a, b = away[:, 0] / first.unsqueeze(1), away[:, 1] / second.unsqueeze(1)
    rest = 1 - correlation**2
    quadratic = (a * a - 2 * correlation.unsqueeze(1) * a * b + b * b).sum(dim=1) / rest
    return shape[:, :2].sum(dim=1) - 1.5 * (2 * (first * second).log() + rest.log()) - quadratic / 2


class Inside:
    """A normal variable of some mean and deviation (n,), float64, of which only what lies within ±bound is kept."""

    def __init__(self, mean: Tensor, deviation: Tensor, bound: float) -> None:
        # Φ of what is far below 0 has all its digits, 1 - Φ has not: so the side is chosen on which it is small.
        self.mean, self.deviation, self.side = mean, deviation, torch.where(mean > 0, 1.0, -1.0)
        ends = torch.stack([-bound - self.side * mean, bound - self.side * mean]) / deviation
        self.below, upper = torch.special.ndtr(ends).unbind()
        self.share = (upper - self.below).clamp(min=1e-300)

    def draw(self, uniform: Tensor) -> Tensor:
        """As many draws as there are uniform numbers (n,)."""
        return self.mean + self.side * self.deviation * torch.special.ndtri(self.below + uniform * self.share)


def slcp_posterior(x: Tensor, n: int, generator: torch.Generator, grid: int = GRID) -> Tensor:
    """Covariances from a grid, the mean given these from its truncated normal, and rejection for what is left.

    A cell is drawn by the density at its centre, with the chance that the prior has a place for either part of the
    mean, and a point in it uniformly. Kept is a share of these draws: the true density over that by which they were
    drawn, over the largest such ratio. Both scales have either sign. Scales below a third of what the spread of the
    points says have no weight, e⁻⁸⁰ at most, so that the grid begins there.
    """
    points = x.double().view(4, 2)
    middle = points.mean(dim=0)
    high = torch.tensor([math.log(3), math.log(3), 3.0], dtype=torch.float64)
    low = torch.cat([points.std(dim=0).log().div(2).clamp(max=math.log(3)) - math.log(3), -high[2:]])
    step = (high - low) / grid
    places = torch.arange(grid, dtype=torch.float64) + 0.5
    centres = low + torch.cartesian_prod(places, places, places) * step
    log_proposal = slcp_log_density(centres, points)
    for k in range(2):  # a mean of four points has half the deviation of one
        log_proposal += Inside(middle[k].expand(len(centres)), (2 * centres[:, k]).exp() / 2, 3.0).share.log()
    ladder = (log_proposal - log_proposal.max()).exp().cumsum(0)
    kept: list[Tensor] = []
    largest = 0.0
    while sum(map(len, kept)) < n:
        uniform = torch.rand(8 * n, 7, generator=generator, dtype=torch.float64)
        cell = torch.searchsorted(ladder, uniform[:, 0] * ladder[-1]).clamp(max=len(ladder) - 1)
        shape = centres[cell] + (uniform[:, 1:4] - 0.5) * step
        first, second = ((2 * shape[:, :2]).exp() / 2).unbind(dim=1)
        correlation = shape[:, 2].tanh()
        across = Inside(middle[0].expand(len(shape)), first, 3.0)
        mean = across.draw(uniform[:, 4])
        given = middle[1] + correlation * second / first * (mean - middle[0])
        along = Inside(given, second * (1 - correlation**2).sqrt(), 3.0)
        log_density = slcp_log_density(shape, points) + across.share.log() + along.share.log()
        ratio = (log_density - log_proposal[cell]).exp()
        if float(ratio.max()) > largest:  # what was kept so far was kept too often
            largest, kept = float(ratio.max()), []
        signs = torch.where(torch.rand(len(shape), 2, generator=generator) < 0.5, -1.0, 1.0)
        theta = torch.cat(
            [torch.stack([mean, along.draw(uniform[:, 5])], dim=1), shape[:, :2].exp() * signs, shape[:, 2:]], dim=1
        )
        kept.append(theta[uniform[:, 6] * largest < ratio])
    return torch.cat(kept)[:n].float()


TASKS = {
    "two moons": Task(two_moons, moons_posterior, 1.0),
    "SLCP": Task(slcp, slcp_posterior, 3.0),
    "Gaussian linear": Task(gaussian_linear, gaussian_posterior, None),
}
