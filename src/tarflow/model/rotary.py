"""Rotary positions: queries and keys turned by angles that grow with a patch's row and column."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BASE = 100.0
"""Ratio of the fastest wave to the slowest: from half a turn a patch to half a turn in a hundred patches."""


KEPT = 32  # tables, of as many grids, devices and dtypes
_TABLES: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


def rotation_table(
    grid: tuple[int, int], head_dim: int, flipped: bool, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles of all patches, (T, K/2) each, in the order of a block.

        angle_(r,c),k = π · (r or c) · BASE^(-j/(K/4 - 1)),    j = 0 … K/4-1

    the first half of them from the row r, the second from the column c (axial: Heo et al., arXiv 2403.13298). Nothing
    is learned, and no checkpoint holds it.
    """
    key = (grid, head_dim, flipped, device, dtype)
    if key in _TABLES:
        return _TABLES[key]
    table = _table(grid, head_dim, flipped, device, dtype)
    if all(type(part) is Tensor for part in table):  # what a tracer makes (torch.export) has no numbers in it
        if len(_TABLES) >= KEPT:
            _TABLES.clear()
        _TABLES[key] = table
    return table


def _table(
    grid: tuple[int, int], head_dim: int, flipped: bool, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    # Made in no mode of the caller's: a table of inference mode could not be used in training afterwards.
    with torch.inference_mode(False), torch.no_grad():
        waves = BASE ** -torch.linspace(0, 1, head_dim // 4, device="cpu", dtype=torch.float64)
        rows, columns = (torch.arange(n, device="cpu", dtype=torch.float64) for n in grid)
        places = torch.cartesian_prod(rows, columns)  # (T, 2), in raster order
        angles = (places.unsqueeze(2) * waves * math.pi).flatten(1)
        angles = angles.flip(0) if flipped else angles
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)


def rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """x (…, n, K), queries or keys, with channel i and channel i + K/2 as a point in the plane, turned by its angle.

    The product of a query and a key so turned depends on the difference of their places alone. `rotation`: cos and sin,
    (n, K/2) each, in the dtype in which it is computed; the result has that of x. Source: RoFormer, arXiv 2104.09864.
    """
    cos, sin = rotation
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(first * sin, second, cos)
    return torch.cat(turned, dim=-1).to(x.dtype)
