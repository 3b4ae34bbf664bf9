"""Where to compute: the device that a user named, or the best one there is."""

from __future__ import annotations

import torch

NAMES = ("auto", "cpu", "cuda", "mps")


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
    return torch.device(name)
