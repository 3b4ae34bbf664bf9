"""What Hamiltonian Monte Carlo finds in its warm-up: step sizes, scales, and how long its trajectories are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Dual averaging: Hoffman and Gelman, JMLR 15 (2014), section 3.2, whose constants these are.
SHRINKAGE, EARLY, FORGETTING = 0.15, 10.0, 0.75
WINDOWS = (1, 2, 4, 8, 12)
"""Sixteenths of the warm-up, after each of which the scales are those of the last two thirds of the gradients so far."""
LEAST_DRAWS = 10
"""Gradients from which scales are estimated at least."""
FIRST_LEAPFROG, MOST_LEAPFROG = 8, 32
"""Leapfrog steps where their number is found: before anything is known, and at most on average."""
POWER_STEPS = 12
"""Of the power iteration that finds the direction in which draws lie widest."""


class Tuning:
    """Step sizes and scales, found as a warm-up goes on; `pooled` successive chains share theirs.

    Attributes:
        size: (chains,), of a step in units of the scale. scale: (chains, d). leapfrog: steps of a trajectory, mean.
    """

    def __init__(self, x: Tensor, size: Tensor, target: float, leapfrog: int | None, pooled: int) -> None:
        self.target, self.pooled, self.given = target, pooled, leapfrog
        self.scale, self.length = torch.ones_like(x), 0.0
        self.averaging = _DualAveraging(size, target)
        self.scaled = False
        self.draws: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.windows = list(WINDOWS)

    @property
    def size(self) -> Tensor:
        return self.averaging.size.repeat_interleave(self.pooled)

    @property
    def leapfrog(self) -> int:
        if self.given is not None:
            return self.given
        if not self.length:
            return FIRST_LEAPFROG
        return min(MOST_LEAPFROG, max(1, math.ceil(self.length / float(self.averaging.size.median()))))

    def learn(self, x: Tensor, gradient: Tensor, probability: Tensor, warmed: float) -> None:
        """One step of the warm-up ended at x (chains, d), taken with that probability; so much of it is over."""
        self.averaging.update(probability.view(-1, self.pooled).mean(dim=1))
        self.draws.append(x)
        self.gradients.append(gradient)
        if warmed >= 1:
            return self.averaging.settle()
        passed = [window for window in self.windows if window <= 16 * warmed]
        if passed and len(self.draws) * self.pooled >= LEAST_DRAWS and len(self.draws) > 1:
            draws, gradients = (self._by_group(steps[len(steps) // 3 :]) for steps in (self.draws, self.gradients))
            scale = _conditional_width(gradients)
            self.length = math.pi / 2 * _widest(draws / scale.unsqueeze(1))
            size = self.averaging.mean if self.scaled else torch.ones_like(self.averaging.size) * x.shape[1] ** -0.25
            self.averaging = _DualAveraging(size, self.target, aim=size)
            self.scale, self.scaled = scale.repeat_interleave(self.pooled, dim=0), True
        if passed:
            self.windows = [window for window in self.windows if window not in passed]
        return None

    def _by_group(self, steps: list[Tensor]) -> Tensor:
        """What came of each step, (chains, d), as (groups, steps·pooled, d)."""
        return torch.stack(steps).unflatten(1, (-1, self.pooled)).transpose(0, 1).flatten(1, 2)


class _DualAveraging:
    """The step size (groups,) that leads the probability of acceptance to a target."""

    def __init__(self, size: Tensor, target: float, aim: Tensor | None = None) -> None:
        self.size, self.target = size, target
        self.aim = (10 * size if aim is None else aim).log()
        self.error, self.log_mean, self.count = torch.zeros_like(size), torch.zeros_like(size), 0

    def update(self, probability: Tensor) -> None:
        self.count += 1
        share = 1 / (self.count + EARLY)
        self.error = (1 - share) * self.error + share * (self.target - probability)
        log_size = self.aim - self.count**0.5 / SHRINKAGE * self.error
        weight = self.count**-FORGETTING
        self.log_mean = weight * log_size + (1 - weight) * self.log_mean
        self.size = log_size.exp()

    @property
    def mean(self) -> Tensor:
        """Of the last ones, which no longer swings."""
        return self.log_mean.exp() if self.count else self.size

    def settle(self) -> None:
        """From now on that mean."""
        self.size = self.mean


def _conditional_width(gradients: Tensor) -> Tensor:
    """1/√E[g²] (groups, d) of gradients (groups, n, d), drawn a little towards the geometric mean of all d.

    In equilibrium E[g²] = -E[∂²log π/∂x²], which of a Gaussian is 1/Var(x_i | others).
    """
    precision = gradients.square().mean(dim=1)
    log_precision = precision.clamp(min=torch.finfo(precision.dtype).tiny ** 0.5).log()
    trust = gradients.shape[1] / (gradients.shape[1] + 5)
    common = log_precision.mean(dim=1, keepdim=True)
    return (-0.5 * (trust * log_precision + (1 - trust) * common)).exp()


def _widest(draws: Tensor) -> float:
    """The standard deviation of draws (groups, n, d) along the direction in which it is largest; the groups' median."""
    centred = draws - draws.mean(dim=1, keepdim=True)
    direction = torch.ones_like(centred[:, 0]) + 0.1 * centred[:, 0]
    for _ in range(POWER_STEPS):
        direction = torch.nn.functional.normalize(direction, dim=1)
        along = torch.einsum("gnd,gd->gn", centred, direction)
        direction = torch.einsum("gnd,gn->gd", centred, along)
    return float((along.square().sum(dim=1) / (draws.shape[1] - 1)).sqrt().median())
