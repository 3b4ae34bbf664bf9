"""Four tasks of simulation-based inference, and exact draws of their posteriors to compare with.

As in sbi's benchmark (Lueckmann et al., arXiv 2101.04653), a simulator gives data x for parameters θ of a prior:

- `two moons`: 2 parameters, uniform in (-1, 1), given 2 numbers; two crescents;
- `SLCP`: 5 parameters, uniform in (-3, 3), given four points in the plane: a simple likelihood, a complex posterior;
- `Gaussian linear`: 10 parameters, normal with variance 0.1, seen through noise of variance 0.1;
- `galaxy`, which is not of that benchmark: 4 parameters, uniform in (-1, 1), given an image of 16x16: the place, the
  angle and the brightness of an ellipse in noise, from too faint to be seen to plain. Angles are those of an axis, so
  that -1 and 1 are the same.

No reference is a Markov chain. That of two moons turns draws of the noise back into parameters, that of the Gaussian
task is its formula, and that of SLCP is drawn from a grid in its three parameters of the covariance and corrected by
rejection, the other two being normal given these. That of a galaxy is likewise, with a grid in place and angle around
what the image leaves open, and a brightness that is normal given these. `tests/benchmarks/test_posteriors.py` has ranks
of truths among them.
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
        condition: of a flow that is given the data; None where these are a vector.
    """

    simulate: Simulate
    reference: Reference
    bound: float | None
    condition: str | None = None


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


SIDE = 16  # pixels of a galaxy's image
AXES = 0.4, 0.15  # deviations of its light along both axes, where the image is from -1 to 1
FAR = 0.7  # how far from the middle it may lie
COARSE, FINE = 28, 24  # points in each of place and angle, to find where the posterior is and then within that
NEGLIGIBLE = 20.0  # nats below the highest, from which on a cell has no weight


def light(shape: Tensor) -> Tensor:
    """The images (n, 256) of ellipses of brightness 1 at place and angle (n, 3), without noise."""
    ticks = (torch.arange(SIDE, dtype=shape.dtype) + 0.5) * (2 / SIDE) - 1
    down, across = torch.meshgrid(ticks, ticks, indexing="ij")
    place, angle = FAR * shape[:, :2, None, None], (math.pi / 2) * shape[:, 2, None, None]
    y, x = down - place[:, 0], across - place[:, 1]
    along, beside = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    return (-0.5 * ((along / AXES[0]) ** 2 + (beside / AXES[1]) ** 2)).exp().flatten(1)


def galaxy(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Place, angle and brightness less 1 (n, 4), and images (n, 1, 16, 16) with noise of deviation 1."""
    theta = 2 * torch.rand(n, 4, generator=generator) - 1
    clean = (1 + theta[:, 3:]) * light(theta[:, :3])
    return theta, (clean + torch.randn(n, SIDE**2, generator=generator)).view(n, 1, SIDE, SIDE)


def galaxy_brightness(shape: Tensor, pixels: Tensor) -> tuple[Inside, Tensor]:
    """θ₄ given place and angle (n, 3) and pixels (256,), and log p(shape | pixels) but for a constant.

    With b the image of brightness 1, (1 + θ₄) is normal around x·b/|b|² with deviation 1/|b|, within (0, 2); what is
    left of the likelihood is exp((x·b)²/2|b|²)/|b| times the share of that normal within.
    """
    images = light(shape)
    square = images.square().sum(dim=1)
    overlap = images @ pixels
    theta = Inside(overlap / square - 1, square.rsqrt(), 1.0)
    return theta, overlap.square() / (2 * square) - square.log() / 2 + theta.share.log()


def galaxy_posterior(x: Tensor, n: int, generator: torch.Generator, coarse: int = COARSE, fine: int = FINE) -> Tensor:
    """Place and angle from a grid and by rejection, as covariances of SLCP, and the brightness from its normal.

    The second grid fills the box of the cells of the first one whose density counts.
    """
    pixels = x.double().flatten()
    low, high = -torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for points in (coarse, fine):
        step = (high - low) / points
        ticks = torch.arange(points, dtype=torch.float64) + 0.5
        centres = low + torch.cartesian_prod(ticks, ticks, ticks) * step
        log_density = torch.cat([galaxy_brightness(part, pixels)[1] for part in centres.split(1 << 13)])
        counts = centres[log_density > log_density.max() - NEGLIGIBLE]
        low, high = (counts.amin(dim=0) - step).clamp(min=-1), (counts.amax(dim=0) + step).clamp(max=1)
    ladder = (log_density - log_density.max()).exp().cumsum(0)
    kept: list[Tensor] = []
    largest = 0.0
    while sum(map(len, kept)) < n:
        uniform = torch.rand(4 * max(n, 250), 6, generator=generator, dtype=torch.float64)
        cell = torch.searchsorted(ladder, uniform[:, 0] * ladder[-1]).clamp(max=len(ladder) - 1)
        shape = centres[cell] + (uniform[:, 1:4] - 0.5) * step
        brightness, found = galaxy_brightness(shape, pixels)
        ratio = (found - log_density[cell]).exp()
        if float(ratio.max()) > largest:  # what was kept so far was kept too often
            largest, kept = float(ratio.max()), []
        theta = torch.cat([shape, brightness.draw(uniform[:, 4]).unsqueeze(1)], dim=1)
        kept.append(theta[uniform[:, 5] * largest < ratio])
    return torch.cat(kept)[:n].float()


TASKS = {
    "two moons": Task(two_moons, moons_posterior, 1.0),
    "SLCP": Task(slcp, slcp_posterior, 3.0),
    "Gaussian linear": Task(gaussian_linear, gaussian_posterior, None),
    "galaxy": Task(galaxy, galaxy_posterior, 1.0, f"image:1:{SIDE}:{SIDE}:4"),
}
