"""What the tests of the benchmarks share: a small model, and the stand-ins for the clones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tarflow
from flow_cases import randomise

STAND_INS = Path(__file__).parents[1] / "benchmarks" / "stand_ins"
SMALL: dict[str, Any] = {"image_size": 8, "patch_size": 2, "width": 64, "layers": (1, 2, 1), "num_classes": 3}
SMALL["log_scale_bound"] = None  # as the official code


def small_flow(seed: int = 0, **changes: Any) -> tarflow.TarFlow:
    """A float32 flow of 16 patches in which every weight matters; its samples stay within a few units."""
    flow = randomise(tarflow.TarFlow(tarflow.TarFlowConfig(**{**SMALL, **changes})), seed).eval().requires_grad_(False)
    for block in flow.blocks:
        block.proj_out.weight *= 0.25
        block.proj_out.bias *= 0.25
    return flow
