"""A spline of each number and the affine map after it: what pixels need that a Gaussian does not have."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tarflow.model import rational_quadratic
from tarflow.model.config import SequenceConfig
from tarflow.model.spline_native import NativeSpline
from tarflow.model.transform import SHARE_OF_RANGE, Affine, Rule


class Spline(Affine):
    """z = (S(x) - shift)·exp(-log_scale), S a rational-quadratic spline of [-b, b] onto itself, the identity beyond.

    An affine map makes a Gaussian of every conditional. Pixels pile up at black and white, and have two peaks at an
    edge; S takes them apart. It is conditional as shift and log-scale are.

    The parameters of a number are v and the shift of `Affine`, the widths of K bins, their heights, and K-1 slopes at
    the knots between them: 3·K + 1. `rational_quadratic` has the formulas.

    Args:
        config: its `bins` K and its `interval` b.
    """

    def __init__(self, config: SequenceConfig, **made: Any) -> None:
        super().__init__(config, **made)
        self.bins, self.interval, self.dim = config.bins, config.interval, config.dim
        self.params_per_number = 2 + rational_quadratic.parameters_of(config.bins)
        self.size = self.params_per_number * config.dim
        largest = SHARE_OF_RANGE * math.log(torch.finfo(torch.float32).max)
        self.native = NativeSpline(config.bins, config.interval, config.bound, largest)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        params = params.to(torch.promote_types(params.dtype, torch.float32))
        if self.native.fits(x, params):
            return self.native.forward(x, params, self.reference)
        return self.reference(x, params)

    def reference(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` in PyTorch's operations."""
        affine, curve = self.parts(params)
        y, log_slope = rational_quadratic.forward(x, curve, self.bins, self.interval)
        z, ladj = super().forward(y, affine)
        return z, ladj + log_slope.sum(dim=-1)

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        params = params.to(torch.promote_types(params.dtype, torch.float32))
        differentiable = torch.is_grad_enabled() and (z.requires_grad or params.requires_grad)
        if not differentiable and self.native.fits(z, params):
            return self.native.inverse(z, params)
        affine, curve = self.parts(params)
        return rational_quadratic.inverse(super().inverse(z, affine), curve, self.bins, self.interval)

    def combine(self, conditional: Tensor, unguided: Tensor, strength: Tensor | float, rule: Rule) -> Tensor:
        """Rule "paper" extrapolates all parameters. "stable" is that of the affine map, after the conditional's spline.

        Where both branches have one spline S, the second is exact: p_c^(1+g)/p_u^g is that of the Gaussians of S(x),
        times ∂S/∂x. Where they have not, it is no further from p_c^(1+g)/p_u^g than p_c is, or hardly; widths and
        heights of bins that lie elsewhere lead away from it when extrapolated (`benchmarks.spline_guidance`).
        """
        if rule == "paper":
            return super().combine(conditional, unguided, strength, rule)
        (affine, curve), (unguided_affine, _) = self.parts(conditional), self.parts(unguided)
        return torch.cat([super().combine(affine, unguided_affine, strength, rule), curve], dim=-1)

    def parts(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of the affine map and of the spline."""
        affine = 2 * (params.shape[-1] // self.params_per_number)
        return params[..., :affine], params[..., affine:]
