"""Rotary positions: the angles are those of the formula, of a patch's place, and never rounded to narrow weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flow_cases import BASE
from tarflow import TarFlow, TarFlowConfig
from tarflow.model import constants
from tarflow.model.order import Order, make_order
from tarflow.model.rotary import rotated, rotation_table

GRID, HEAD_DIM = (3, 5), 16


def order_of(flipped: bool) -> Order:
    return make_order("flipped" if flipped else "raster", GRID[0] * GRID[1])


def angles(grid: tuple[int, int], head_dim: int) -> Tensor:
    """(T, K/2), by loops: half of the waves by the row, half by the column, from half a turn to its hundredth."""
    waves = [100.0 ** (-j / (head_dim // 4 - 1)) for j in range(head_dim // 4)]
    rows = [
        [math.pi * row * wave for wave in waves] + [math.pi * column * wave for wave in waves]
        for row in range(grid[0])
        for column in range(grid[1])
    ]
    return torch.tensor(rows, dtype=torch.float64)


def test_the_table_is_the_formula_in_the_order_of_the_block() -> None:
    expected = angles(GRID, HEAD_DIM)
    for flipped in (False, True):
        cos, sin = rotation_table(GRID, HEAD_DIM, order_of(flipped), torch.device("cpu"), torch.float64)
        wanted = expected.flip(0) if flipped else expected
        torch.testing.assert_close(cos, wanted.cos())
        torch.testing.assert_close(sin, wanted.sin())


@pytest.mark.parametrize("flipped", [False, True])
def test_a_product_of_query_and_key_goes_by_the_places_in_the_picture(flipped: bool) -> None:
    """A patch to the right of another is that in both kinds of block: the difference of places has a sign."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, HEAD_DIM, generator=generator, dtype=torch.float64)
    table = rotation_table(GRID, HEAD_DIM, order_of(flipped), torch.device("cpu"), torch.float64)
    count = GRID[0] * GRID[1]
    products = rotated(q.expand(count, -1), table) @ rotated(k.expand(count, -1), table).T
    places = [(i // GRID[1], i % GRID[1]) for i in (range(count - 1, -1, -1) if flipped else range(count))]
    by_difference: dict[tuple[int, int], float] = {}
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            found = by_difference.setdefault((row - other_row, column - other_column), float(products[i, j]))
            assert float(products[i, j]) == pytest.approx(found)
    halves = q.view(2, 2, -1), k.view(2, 2, -1)  # (cos or sin, row or column, waves)
    waves = angles((2, 1), HEAD_DIM)[1, : HEAD_DIM // 4]
    for (rows, columns), found in by_difference.items():
        turn = torch.cat([rows * waves, columns * waves]).view(2, -1)  # by which the query is ahead of the key
        (a, b), (c, d) = halves
        by_hand = ((a * c + b * d) * turn.cos() + (a * d - b * c) * turn.sin()).sum()
        assert found == pytest.approx(float(by_hand))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_angles_are_float32_at_least_whatever_the_weights_are(dtype: torch.dtype) -> None:
    config = TarFlowConfig(**BASE | {"image_size": (6, 10), "rotary": True, "head_dim": 16})
    wide = torch.promote_types(dtype, torch.float32)
    expected = angles(GRID, 16)
    for block in TarFlow(config).to(dtype).blocks:
        table = block.rotation()
        assert table is not None
        for found, exact in zip(table, (expected.cos(), expected.sin()), strict=True):
            assert found.dtype == wide
            torch.testing.assert_close(
                found, (exact.flip(0) if block.order.is_flipped else exact).to(wide), rtol=0, atol=1e-7
            )
        q = torch.randn(2, 15, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
        turned = rotated(q, table)
        exactly = rotated(q.double(), rotation_table(GRID, 16, block.order, q.device, torch.float64))
        assert turned.dtype == dtype
        torch.testing.assert_close(turned, exactly.to(dtype))


def test_a_table_that_was_made_in_inference_mode_can_be_trained_with() -> None:
    constants._KEPT.clear()
    with torch.inference_mode():
        table = rotation_table(GRID, HEAD_DIM, order_of(False), torch.device("cpu"), torch.float32)
    x = torch.randn(15, HEAD_DIM, requires_grad=True)
    rotated(x, table).square().sum().backward()
    assert x.grad is not None and not table[0].is_inference()
