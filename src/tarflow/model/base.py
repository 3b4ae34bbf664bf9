"""The distribution of the latents that the flow maps data to.

A new base is a class here, or in a file of its own, and one line in `BASES`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

VARIANCE_RATE = 0.1  # weight of a step's mean(z²) in the followed variance; the paper's


class Normal(nn.Module):
    """N(0, 1) in every number of the latents z (B, T, D)."""

    follows = False
    """Whether training moves it, by `update`."""

    variance: Tensor

    def __init__(self, tokens: int, dim: int, **made: Any) -> None:
        super().__init__()
        self.dim = dim

    def log_prob(self, z: Tensor) -> Tensor:
        """log-density by token, nats, (B, T)."""
        return -0.5 * (z.square().sum(dim=2) + self.dim * math.log(2 * math.pi))

    def sample(self, noise: Tensor) -> Tensor:
        """Standard normal noise (B, T, D) to latents of this distribution."""
        return noise

    def standardised(self, z: Tensor) -> Tensor:
        """Latents to standard normal noise: the inverse of `sample`."""
        return z

    def update(self, energy: Tensor, moved: Tensor | bool = True) -> None:
        """Follow `energy`, mean(z²) (T, D) of a training step's batch, unless that does not count (`moved`)."""


class FollowedVariance(Normal):
    """N(0, V) with V (T, D) a buffer that follows mean(z²) in training: the paper's, for additive transforms."""

    follows = True

    def __init__(self, tokens: int, dim: int, **made: Any) -> None:
        super().__init__(tokens, dim)
        self.register_buffer("variance", torch.ones(tokens, dim, **made))

    def log_prob(self, z: Tensor) -> Tensor:
        variance = self.variance.to(z.dtype)
        return super().log_prob(z / variance.sqrt()) - 0.5 * variance.log().sum(dim=1)

    def sample(self, noise: Tensor) -> Tensor:
        return noise * self.variance.sqrt()

    def standardised(self, z: Tensor) -> Tensor:
        return z / self.variance.sqrt()

    @torch.no_grad()
    def update(self, energy: Tensor, moved: Tensor | bool = True) -> None:
        step = VARIANCE_RATE * (energy.to(self.variance.dtype) - self.variance)
        self.variance += torch.where(torch.as_tensor(moved, device=step.device, dtype=torch.bool), step, 0.0)


BASES: dict[str, type[Normal]] = {"normal": Normal, "followed": FollowedVariance}
