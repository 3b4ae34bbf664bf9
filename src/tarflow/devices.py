"""Where to compute: the device that a user named, or the best one there is; and in which precision its products are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

NAMES = ("auto", "cpu", "cuda", "mps")
KEPT_SHARE = 1 / 8
"""Share of a GPU's memory that training images may take, which saves a copy a step; activations need the rest."""


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA, else Apple's MPS, else the CPU. Raises ValueError where the named device is not there."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if name not in available:
        raise ValueError(f"device: expected one of {', '.join(NAMES)}, got {name!r}")
    if not available[name]:
        usable = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device: {name} is not available here; available: {usable}")
    return numbered(name)


def numbered(device: torch.device | str) -> torch.device:
    """The device as its tensors name it: `cuda` is the current one, with its number.

    A tensor on it says `cuda:0`, which does not compare equal to `cuda`.
    """
    return torch.empty(0, dtype=torch.uint8, device=device).device


def free_bytes(device: torch.device) -> int | None:
    """What can still be allocated on a GPU: what the driver has, and what torch keeps for later. None elsewhere."""
    if device.type != "cuda":
        return None
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def machine_bytes() -> int | None:
    """The memory of the machine; None where the system does not say."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def synchronise(device: torch.device) -> None:
    """Wait for what the device has been given: without it a clock measures the launching."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A context without autocast, whatever the caller has set; of devices without autocast, as `meta`, an empty one."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def float32_products(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Within it, products of float32 numbers are rounded to TF32 (10 bits of mantissa) on CUDA, or are not.

    Without `tf32` they are exact to float32, whatever the process has set: what is computed does not hang on it. The
    process gets its setting back.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
