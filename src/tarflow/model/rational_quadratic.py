"""A monotone rational-quadratic spline of each number, its inverse, and the logarithm of its slope.

It is said in PyTorch's operations, for every dtype, device and derivative. `spline_native` does the same in C.

Source: Durkan et al., Neural Spline Flows, arXiv 1906.04032, section 3.1 and appendix A.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_SHARE = 1e-3
"""Of the interval, that the width and the height of a bin take at least. A level of 256 takes four times as much."""

STEEPEST = math.log(1e3)
"""Bound of the logarithm of the slopes at the inner knots: they lie between 1/1000 and 1000."""


class Bin(NamedTuple):
    """The bin that each number lies in, in units of b; each (…, D)."""

    left: Tensor
    width: Tensor
    bottom: Tensor
    height: Tensor
    low: Tensor  # the slopes at its two ends
    high: Tensor


def parameters_of(bins: int) -> int:
    """The parameters of the spline alone, for each number: widths, heights, and slopes at the inner knots."""
    return 3 * bins - 1


def forward(x: Tensor, params: Tensor, bins: int, interval: float) -> tuple[Tensor, Tensor]:
    """x (…, D) and params (…, (3·bins-1)·D) to y (…, D) and ln ∂y/∂x (…, D).

    With ξ the place of x within its bin, from 0 to 1, s the mean slope of the bin, δ and δ' the slopes at its ends:

        y = bottom + height·(s ξ² + δ ξ(1-ξ)) / (s + (δ + δ' - 2s) ξ(1-ξ))

    The K widths and the K heights are LEAST_SHARE each and shares of the rest, by a softmax of their parameters. The
    slope at an inner knot is exp(STEEPEST·tanh(v/STEEPEST)), at ±b and beyond it is 1. Where all parameters are zero
    this is the identity. Source: Durkan et al., Neural Spline Flows, arXiv 1906.04032, section 3.1.
    """
    inside = x.abs() <= interval
    place = torch.where(inside, x / interval, 0)
    bin_ = _bin(place, params, bins, by=0)
    s = bin_.height / bin_.width
    xi = ((place - bin_.left) / bin_.width).clamp(0, 1)
    theta = xi * (1 - xi)
    under = s * (1 - 2 * theta) + (bin_.low + bin_.high) * theta  # sums of what is positive, so that nothing cancels
    over = bin_.high * xi.square() + 2 * s * theta + bin_.low * (1 - xi).square()
    up = bin_.bottom + bin_.height * (s * xi.square() + bin_.low * theta) / under
    log_slope = torch.log((s / under).square() * over)
    return torch.where(inside, interval * up, x), torch.where(inside, log_slope, 0)


def inverse(y: Tensor, params: Tensor, bins: int, interval: float) -> Tensor:
    """y (…, D) to x (…, D): the root in [0, 1] of a ξ² + b ξ = s η, with η the place of y in the height of its bin.

    a = s - δ + η (δ + δ' - 2s) and b = δ - η (δ + δ' - 2s). Their sum is s, so that a > 0 where b < 0, and of the two
    forms of the root the one is taken in which nothing cancels.
    """
    inside = y.abs() <= interval
    place = torch.where(inside, y / interval, 0)
    bin_ = _bin(place, params, bins, by=1)
    s = bin_.height / bin_.width
    eta = ((place - bin_.bottom) / bin_.height).clamp(0, 1)
    bend = eta * (bin_.low + bin_.high - 2 * s)
    a, b = s - bin_.low + bend, bin_.low - bend
    q = b.abs() + (b.square() + 4 * a * s * eta).clamp(min=0).sqrt()
    xi = torch.where(b < 0, q / (2 * torch.where(b < 0, a, 1)), 2 * s * eta / q).clamp(0, 1)
    return torch.where(inside, interval * (bin_.left + bin_.width * xi), y)


def _bin(place: Tensor, params: Tensor, bins: int, by: int) -> Bin:
    """The bin in which a place in [-1, 1] lies: by widths (0) or by heights (1)."""
    params = params.unflatten(-1, (3 * bins - 1, -1))  # (…, 3·bins-1, D)
    widths, heights, slopes = params.split([bins, bins, bins - 1], dim=-2)
    sizes = [2 * LEAST_SHARE + 2 * (1 - bins * LEAST_SHARE) * part.softmax(dim=-2) for part in (widths, heights)]
    starts = [F.pad(part.cumsum(dim=-2)[..., :-1, :], (0, 0, 1, 0)) - 1 for part in sizes]
    slopes = F.pad(torch.exp(STEEPEST * torch.tanh(slopes / STEEPEST)), (0, 0, 1, 1), value=1.0)  # (…, bins+1, D)
    at = (place.unsqueeze(-2) >= starts[by][..., 1:, :]).sum(dim=-2, keepdim=True)  # (…, 1, D)
    columns = (starts[0], sizes[0], starts[1], sizes[1], slopes, slopes[..., 1:, :])
    return Bin(*(column.gather(-2, at).squeeze(-2) for column in columns))
