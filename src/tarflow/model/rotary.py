"""Rotary positions: queries and keys turned by angles that grow with the coordinates of a token."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tarflow.model.constants import constants
from tarflow.model.order import Order

Rotation = tuple[Tensor, Tensor]
"""cos and sin (n, K/2) of the angles of n tokens."""

BASE = 100.0
"""Ratio of the fastest wave to the slowest: from half a turn a token to half a turn in a hundred tokens."""


def rotation_table(
    lattice: tuple[int, ...], head_dim: int, order: Order, device: torch.device, dtype: torch.dtype
) -> Rotation:
    """cos and sin of the angles of all tokens, (T, K/2) each, in a block's own order.

        angle_(c_1 … c_A),(a, j) = π · c_a · BASE^(-j/(K/2A - 1)),    j = 0 … K/2A-1

    for the coordinates c of a token on a lattice with A axes, each of which has its share of the K/2 waves (axial: Heo
    et al., arXiv 2403.13298). Nothing is learned, and no checkpoint holds it.
    """

    def make() -> Rotation:
        waves = BASE ** -torch.linspace(0, 1, head_dim // (2 * len(lattice)), device="cpu", dtype=torch.float64)
        axes = [torch.arange(size, device="cpu", dtype=torch.float64) for size in lattice]
        coordinates = torch.stack(torch.meshgrid(axes, indexing="ij"), dim=-1).view(-1, len(lattice))  # (T, A)
        angles = order.rows((coordinates.unsqueeze(2) * waves * math.pi).flatten(1), 0, len(coordinates))
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    cos, sin = constants(("rotary", lattice, head_dim, order.key, device, dtype), make)
    return cos, sin


def rotated(x: Tensor, rotation: Rotation) -> Tensor:
    """x (…, n, K), queries or keys, with channel i and channel i + K/2 as a point in the plane, turned by its angle.

    The product of a query and a key so turned depends on the difference of their places alone. It is computed in the
    dtype of `rotation`, and the result has that of x. Source: RoFormer, arXiv 2104.09864.
    """
    cos, sin = rotation
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(first * sin, second, cos)
    return torch.cat(turned, dim=-1).to(x.dtype)
