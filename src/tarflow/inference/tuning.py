"""What Hamiltonian Monte Carlo finds in its warm-up: step sizes, scales, and how long its trajectories are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Dual averaging: Hoffman and Gelman, JMLR 15 (2014), section 3.2, whose constants these are.
SHRINKAGE, EARLY, FORGETTING = 0.05, 10.0, 0.75
WINDOWS = (1, 2, 4, 8, 12)
"""Sixteenths of the warm-up, after each of which the scales are those of the draws since the one before."""
LEAST_DRAWS = 10
"""Draws from which scales are estimated at least."""
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
        self.draws: list[Tensor] = []
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

    def learn(self, x: Tensor, probability: Tensor, warmed: float) -> None:
        """One step of the warm-up ended at x (chains, d), taken with that probability; so much of it is over."""
        self.averaging.update(probability.view(-1, self.pooled).mean(dim=1))
        self.draws.append(x)
        if warmed >= 1:
            return self.averaging.settle()
        passed = [window for window in self.windows if window <= 16 * warmed]
        if passed and len(self.draws) * self.pooled >= LEAST_DRAWS and len(self.draws) > 1:
            by_group = torch.stack(self.draws).unflatten(1, (-1, self.pooled)).transpose(0, 1)  # (groups, n, pooled, d)
            scale = _deviation(by_group.flatten(1, 2))
            self.scale = scale.repeat_interleave(self.pooled, dim=0)
            self.length = math.pi / 2 * _widest(by_group.flatten(1, 2) / scale.unsqueeze(1))
            self.draws = []
            self.averaging = _DualAveraging(torch.ones_like(self.averaging.size) * x.shape[1] ** -0.25, self.target)
        if passed:
            self.windows = [window for window in self.windows if window not in passed]
        return None


class _DualAveraging:
    """The step size (groups,) that leads the probability of acceptance to a target."""

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


def _deviation(draws: Tensor) -> Tensor:
    """Standard deviations (groups, d) of draws (groups, n, d), drawn a little towards the geometric mean of all d."""
    variance = draws.var(dim=1)
    log_variance = variance.clamp(min=torch.finfo(variance.dtype).tiny ** 0.5).log()
    trust = draws.shape[1] / (draws.shape[1] + 5)
    common = log_variance.mean(dim=1, keepdim=True)
    return (0.5 * (trust * log_variance + (1 - trust) * common)).exp()


def _widest(draws: Tensor) -> float:
    """The standard deviation of draws (groups, n, d) along the direction in which it is largest; the groups' median."""
    centred = draws - draws.mean(dim=1, keepdim=True)
    direction = torch.ones_like(centred[:, 0]) + 0.1 * centred[:, 0]
    for _ in range(POWER_STEPS):
        direction = torch.nn.functional.normalize(direction, dim=1)
        along = torch.einsum("gnd,gd->gn", centred, direction)
        direction = torch.einsum("gnd,gn->gd", centred, along)
    return float((along.square().sum(dim=1) / (draws.shape[1] - 1)).sqrt().median())
