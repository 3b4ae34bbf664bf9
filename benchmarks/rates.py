"""The machine's own rates, as `tarflow plan` measures them, and those of the thin products of a decoding loop."""

from __future__ import annotations

import torch

from tarflow.config import TarFlowConfig
from tarflow.devices import synchronise
from tarflow.planning.devices import matmul_rate, read_rate, square_rates

__all__ = ["layer_rates", "read_rate", "square_rates", "synchronise"]


def layer_rates(config: TarFlowConfig, rows: int, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """FLOP/s of the four products of a layer for `rows` tokens at once, which is what one step of a loop multiplies."""
    width, hidden = config.width, config.expansion * config.width
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "mlp in": (width, hidden), "mlp out": (hidden, width)}
    with torch.inference_mode():
        return {
            f"{name} {rows}x{inner}x{columns}": matmul_rate(rows, inner, columns, dtype, device, seconds=0.1)
            for name, (inner, columns) in shapes.items()
        }
