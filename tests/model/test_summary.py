"""A printed flow says what it is, and that in a few lines."""

from __future__ import annotations

import torch

import tarflow
from flow_cases import build, every_flow


@every_flow
def test_a_printed_flow_is_short_and_counts_its_parameters(name: str) -> None:
    flow = build(name)
    text = repr(flow)
    assert text.splitlines()[0] == type(flow).__name__
    assert len(text.splitlines()) <= 9 and max(map(len, text.splitlines())) < 120
    assert f"{sum(p.numel() for p in flow.parameters()):,}, float64 on cpu" in text


def test_it_names_what_tells_flows_apart() -> None:
    fields = dict(num_classes=5, transforms=("spline",), rotary=True, start_token=True)
    config = tarflow.TarFlowConfig((8, 12), channels=3, patch_size=2, width=64, layers=(2, 1, 1), **fields)
    flow = tarflow.TarFlow(config, dtype=torch.bfloat16)
    assert repr(flow) == (
        "TarFlow\n"
        "  event       images 3x8x12, 24 tokens of 12 numbers, the first predicted from a start token\n"
        "  network     3 blocks of 2-1-1 layers, width 64, rotary positions\n"
        "  orders      raster and flipped in turn\n"
        "  transforms  spline, 2 affine (log-scale to ±4)\n"
        "  condition   classes:5\n"
        "  base        normal\n"
        f"  parameters  {sum(p.numel() for p in flow.parameters()):,}, bfloat16 on cpu"
    )
    assert "(layers): ModuleList" in repr(flow.blocks[0])  # the modules are still to be had


def test_guidance_is_said_in_words() -> None:
    assert str(tarflow.Guidance(2.0, temperature=0.3)) == "guidance 2 (linear, paper, temperature 0.3)"
    assert str(tarflow.Guidance(0.0)) == "no guidance"
