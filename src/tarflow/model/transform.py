"""What the parameters that a block predicts do to a number of a token: the invertible map, and its inverse.

A new transform is a class here, or in a file of its own, and one line in `architecture.TRANSFORMS`.
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tarflow.architecture import BY_NUMBER, TRANSFORMS
from tarflow.model.config import SequenceConfig

Rule = Literal["paper", "stable"]

SHARE_OF_RANGE = 0.9
"""Of the exponents that a dtype has: an unbounded log-scale ends at ±80 in float32, beyond which e^±v is no number."""


class Transform(nn.Module, ABC):
    """An invertible map of a token, z = t(x; params), whose derivative is triangular in the order of its numbers.

    Parameters are what the block's network gave, (B, n, size). An elementwise transform has k for each of D numbers:
    all first ones, then all second ones, and goes by the D of what it gets. Where they are all zero, t is the identity.
    Guidance extrapolates them as they are; what bounds them is part of t, and comes after it.

    Args:
        config: of the flow. Its bound is that of the log-scale, where the transform has one.
        made: the device and the dtype of weights, for a transform that has some.

    Attributes:
        size: how many parameters a token takes. reads: the rows of a matrix of its own that a token goes through.
    """

    params_per_number: int
    reads = 0

    def __init__(self, config: SequenceConfig, **made: Any) -> None:
        super().__init__()
        self.bound = config.bound
        self.size = self.params_per_number * config.dim

    @abstractmethod
    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, n, D) to z (B, n, D) and ladj = Σ_d log|∂z/∂x| (B, n), nats."""

    @abstractmethod
    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        """z (B, n, D) to x (B, n, D)."""

    def forward_by_number(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """z and log|∂z_d/∂x_d|, of which ladj is the sum, (B, n, D) each; here of an elementwise transform."""
        each = params.unflatten(-1, (-1, x.shape[-1])).transpose(-1, -2)  # (B, n, D, k): tokens of one number
        z, ladj = self.forward(x.flatten(1).unsqueeze(2), each.flatten(1, 2))
        return z.view_as(x), ladj.view_as(x)

    def combine(self, conditional: Tensor, unguided: Tensor, strength: Tensor | float, rule: Rule) -> Tensor:
        """The parameters of guidance from those of its two branches; `sampling.guidance` has the formulas."""
        if rule != "paper":
            raise ValueError(f"guidance rule: expected 'paper' for this transform, got {rule!r}")
        return conditional + strength * (conditional - unguided)

    def guided_inverse(
        self, z: Tensor, conditional: Tensor, unguided: Tensor, strength: Tensor | float, rule: Rule
    ) -> Tensor:
        """z (B, n, D) to x (B, n, D) with guidance between the parameters of two branches."""
        return self.inverse(z, self.combine(conditional, unguided, strength, rule))


class Affine(Transform):
    """z = (x - shift)·exp(-log_scale), ladj = -Σ_d log_scale; TarFlow, arXiv 2412.06329, section 3.

    The parameters are v and the shift (in the order of the official checkpoints), with log_scale = a·tanh(v/a) for a
    bound a, and v itself without one.
    """

    params_per_number = 2

    def log_scale(self, v: Tensor) -> Tensor:
        """The log-scale that is used."""
        return v if self.bound is None else self.bound * torch.tanh(v / self.bound)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        v, shift = params.chunk(2, dim=-1)
        log_scale = self.log_scale(v)
        largest = SHARE_OF_RANGE * math.log(torch.finfo(log_scale.dtype).max)
        if self.bound is None or self.bound > largest:
            log_scale = log_scale.clamp(-largest, largest)
        return (x - shift) * torch.exp(-log_scale), -log_scale.sum(dim=2)

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        v, shift = params.chunk(2, dim=-1)
        return torch.addcmul(shift, z, torch.exp(self.log_scale(v)))

    def combine(self, conditional: Tensor, unguided: Tensor, strength: Tensor | float, rule: Rule) -> Tensor:
        if rule == "paper":
            return super().combine(conditional, unguided, strength, rule)
        (v_c, shift_c), (v_u, shift_u) = conditional.chunk(2, dim=-1), unguided.chunk(2, dim=-1)
        s = torch.exp((2 * (v_c - v_u)).clamp(max=0))  # clip(σ_c²/σ_u², 0, 1)
        denominator = 1 + strength - strength * s
        shift = ((1 + strength) * shift_c - strength * s * shift_u) / denominator
        return torch.cat([v_c - 0.5 * torch.log(denominator), shift], dim=-1)


class Additive(Transform):
    """z = x - shift, ladj = 0: the paper's volume-preserving variant, which both rules guide alike (σ_c = σ_u)."""

    params_per_number = 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return x - params, x.new_zeros(()).expand(x.shape[:2])

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        return z + params

    def combine(self, conditional: Tensor, unguided: Tensor, strength: Tensor | float, rule: Rule) -> Tensor:
        return super().combine(conditional, unguided, strength, "paper")


def make_transform(name: str, config: SequenceConfig, **made: Any) -> Transform:
    """A new transform of a name in the table, for a block of a flow; `made` is the device and the dtype of weights."""
    if name.endswith(BY_NUMBER):
        from tarflow.model.by_number import ByNumber  # which is made of others

        return ByNumber(name.removesuffix(BY_NUMBER), config, **made)
    module, _, found = TRANSFORMS[name].place.partition(":")
    transform: Transform = getattr(importlib.import_module(module), found)(config, **made)
    return transform
