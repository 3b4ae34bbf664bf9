"""The machine's own rates, measured: products of matrices, and reading memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from tarflow.devices import synchronise

SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192), "mps": (2048, 4096)}  # large enough for the full rate
SHORTEST = 0.01  # seconds timed at once: well above the resolution of the clock and the cost of a synchronisation


def best_seconds(run: Callable[[], Any], device: torch.device, *, seconds: float = 0.3) -> float:
    """Seconds a call at best, over what fits into `seconds`: other processes slow a call, and none speeds it up."""
    run()
    synchronise(device)
    calls, best = 1, float("inf")
    deadline = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        synchronise(device)
        end = time.perf_counter()
        if end - start < SHORTEST:
            calls *= 2
            continue
        best = min(best, (end - start) / calls)
        if end > deadline:
            return best


def matmul_rate(
    rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device, *, seconds: float = 0.3
) -> float:
    """FLOP/s of (rows, inner) times (inner, columns), counting 2·rows·inner·columns."""
    a = torch.randn(rows, inner, device=device, dtype=torch.float32).to(dtype)
    b = torch.randn(inner, columns, device=device, dtype=torch.float32).to(dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)
    return 2 * rows * inner * columns / best_seconds(lambda: torch.mm(a, b, out=out), device, seconds=seconds)


def read_rate(nbytes: int, device: torch.device, *, seconds: float = 0.3) -> float:
    """Bytes a second of summing one buffer of `nbytes` again and again: from a cache where it fits into one.

    The buffer is float32 whatever the model's dtype: adding bf16 numbers would measure their conversion.
    """
    buffer = torch.ones(max(1, nbytes // 4), device=device, dtype=torch.float32)
    return 4 * len(buffer) / best_seconds(buffer.sum, device, seconds=seconds)


def square_rates(dtype: torch.dtype, device: torch.device, *, seconds: float = 1.0) -> dict[str, float]:
    """FLOP/s of large square products, by their shape. The best of them is the machine's rate."""
    with torch.inference_mode():
        return {f"{n}x{n}x{n}": matmul_rate(n, n, n, dtype, device, seconds=seconds) for n in SQUARES[device.type]}
