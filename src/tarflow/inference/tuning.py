"""What Hamiltonian Monte Carlo finds in its warm-up: step sizes, scales, and how long its trajectories are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Dual averaging: Hoffman and Gelman, JMLR 15 (2014), section 3.2. They have a shrinkage of 0.05, and aim at ten times
# the first size: of few steps that wastes the first, which overshoot.
SHRINKAGE, EARLY, FORGETTING = 0.15, 10.0, 0.75
WINDOWS = (1, 2, 4, 8, 12)
"""Sixteenths of the warm-up, after each of which the scales are those of the draws since the one before."""
LEAST_STATES = 20
"""States that chains have moved to, from which scales are estimated at least."""
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
        self.draws, self.moved = [x], 0.0
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
        self.moved += float(probability.sum()) / (len(x) // self.pooled)
        passed = [window for window in self.windows if window <= 16 * warmed]
        if passed and self.moved >= LEAST_STATES:
            by_group = torch.stack(self.draws).unflatten(1, (-1, self.pooled)).transpose(0, 1)  # (groups, n, pooled, d)
            before, scale = self.scale[:: self.pooled], _deviation(by_group.flatten(1, 2))
            self.scale = scale.repeat_interleave(self.pooled, dim=0)
            self.length = math.pi / 2 * _widest(by_group.flatten(1, 2) / scale.unsqueeze(1))
            self.averaging = self.averaging.rescaled((before / scale).log().mean(dim=1).exp(), x.shape[1] ** -0.25)
            self.draws, self.moved = [], 0.0
        if passed:
            self.windows = [window for window in self.windows if window not in passed]
        return None


class _DualAveraging:
    """The step size (groups,) that leads the probability of acceptance to a target."""

    def __init__(self, size: Tensor, target: float) -> None:
        self.size, self.target = size, target
        self.aim = size.log()
        self.error, self.log_mean, self.count = torch.zeros_like(size), torch.zeros_like(size), 0

    def update(self, probability: Tensor) -> None:
        self.count += 1
        share = 1 / (self.count + EARLY)
        self.error = (1 - share) * self.error + share * (self.target - probability)
        log_size = self.aim - self.count**0.5 / SHRINKAGE * self.error
        weight = self.count**-FORGETTING
        self.log_mean = weight * log_size + (1 - weight) * self.log_mean
        self.size = log_size.exp()

    def rescaled(self, ratio: Tensor, most: float) -> _DualAveraging:
        """That of steps in other units, `ratio` (groups,) of them to one of now, which begins where this one is.

        At most at a size that suits many independent numbers in units of their widths; and there where all steps were
        accepted, so that it is not known how long they may be.
        """
        known = self.error > (self.target - 1) / 3
        size = torch.where(known, (self.mean * ratio).clamp(max=most), most)
        return _DualAveraging(size, self.target)

    @property
    def mean(self) -> Tensor:
        """Of the last sizes, which no longer swings."""
        return self.log_mean.exp() if self.count else self.size

    def settle(self) -> None:
        """From now on that mean."""
        self.size = self.mean


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
