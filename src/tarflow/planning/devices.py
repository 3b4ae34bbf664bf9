"""What a device can do: by its vendor's data sheet, what others quote from it, or measured here.

`share` is how much of the rate of large products a training step is taken to reach. On the named accelerators it is an
assumption, which one of them bears out: a step of the paper's model reached 0.40 of an H200's data sheet in bf16
(benchmarks/results/gpu-nvidia-h200.json). On the CPU it is what benchmarks/results/plan-cpu.json found.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tarflow.devices import machine_bytes, synchronise

ASSUMED_SHARE = 0.4  # of a data sheet's peak: the middle of what Transformers of this width are reported to reach
CPU_SHARE = 0.6  # of the best measured product, see benchmarks/results/plan-cpu.json
LARGE = 1 << 28  # bytes that fit into no cache
SMALL = 512  # side of the matrices whose product in bf16 the CPU is measured by
SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192), "mps": (2048, 4096)}  # large enough for the full rate
SHORTEST = 0.01  # seconds timed at once: well above the resolution of the clock and the cost of a synchronisation


@dataclass(frozen=True)
class Device:
    """Attributes:
    name: as it was asked for. label: as a reader knows it.
    bf16, float32: FLOP/s of large dense products; float32 without TF32.
    memory: bytes. bandwidth: bytes a second of that memory.
    link: bytes a second, one way, to the other devices of its machine; 0 where there are none.
    share: of the FLOP/s that a training step is taken to reach. source: where all of this is from.
    """

    name: str
    label: str
    bf16: float
    float32: float
    memory: float
    bandwidth: float
    link: float
    share: float
    source: str

    @property
    def tf32(self) -> float:
        """FLOP/s of large products of float32 numbers rounded to TF32: by every data sheet half of those in bf16."""
        return self.bf16 / 2

    @property
    def assumed(self) -> bool:
        """Whether the numbers are a data sheet's."""
        return self.name in KNOWN


def _sheet(
    name: str, label: str, bf16: float, float32: float, gigabytes: float, bandwidth: float, link: float, source: str
) -> Device:
    """Peaks in TFLOP/s, memory in GB, its bandwidth in TB/s, the link in GB/s both ways together: as they are sold."""
    rates = (bf16 * 1e12, float32 * 1e12, gigabytes * 1e9, bandwidth * 1e12, link * 1e9 / 2)
    return Device(name, label, *rates, ASSUMED_SHARE, f"{source}, dense products")


NVIDIA = "NVIDIA's data sheet"
KNOWN = {
    device.name: device
    for device in (
        # Of the next, and of the two below that say so, the vendor's own page was not at hand: the numbers are those
        # that others quote from it. L40S and RTX 4090 are linked by PCIe 4.0 x16 alone.
        _sheet(
            "a100",
            "A100 SXM, 80 GB",
            312,
            19.5,
            80,
            2.039,
            600,
            "NVIDIA's data sheet 1758950 as quoted by others",
        ),
        _sheet("h100", "H100 SXM, 80 GB", 989, 67, 80, 3.35, 900, NVIDIA),
        _sheet("h200", "H200 SXM, 141 GB", 989, 67, 141, 4.8, 900, NVIDIA),
        _sheet("l40s", "L40S, 48 GB", 362, 91.6, 48, 0.864, 64, "NVIDIA's data sheet as quoted by its sellers"),
        # 165.2 is with sums in float32, as training has them.
        _sheet("rtx4090", "GeForce RTX 4090, 24 GB", 165.2, 82.6, 24, 1.008, 64, "tables of others than NVIDIA"),
        _sheet("mi300x", "Instinct MI300X, 192 GB", 1307, 163.4, 192, 5.3, 896, "AMD's data sheet"),
    )
}
NAMES = (*KNOWN, "cpu", "cuda")


def find_device(name: str, *, seconds: float = 1.0) -> Device:
    """A device by its name: those in `KNOWN`, or "cpu" and "cuda", which are measured here for about `seconds` each.

    Raises ValueError: an unknown name, or "cuda" where there is none.
    """
    if name in KNOWN:
        return KNOWN[name]
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, 1)
        hint = f"perhaps {near[0]}? " if near else ""
        raise ValueError(f"device: no such device {name!r}; {hint}known: {', '.join(NAMES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: cuda is not available here; give one of {', '.join(KNOWN)}")
    return measured(torch.device(name), seconds=seconds)


def measured(device: torch.device, *, seconds: float = 1.0) -> Device:
    """This machine's device, its rates measured by square products and by reading a large buffer."""
    cpu = device.type == "cpu"
    float32 = max(square_rates(torch.float32, device, seconds=seconds / 3).values())
    with torch.inference_mode():
        # Without instructions for bf16 a CPU takes minutes for what is large in float32.
        side = SMALL if cpu else max(SQUARES[device.type])
        bf16 = matmul_rate(side, side, side, torch.bfloat16, device, seconds=seconds / 3)
        bandwidth = read_rate(LARGE, device, seconds=seconds / 3)
    if cpu:
        memory = float(machine_bytes() or 0)
        label = f"this machine's CPU, {torch.get_num_threads()} threads"
    else:
        memory, label = float(torch.cuda.mem_get_info(device)[1]), torch.cuda.get_device_name(device)
    share = CPU_SHARE if cpu else ASSUMED_SHARE
    return Device(device.type, label, bf16, float32, memory, bandwidth, 0.0, share, "measured now, by large products")


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
