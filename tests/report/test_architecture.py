"""The drawing is of this model: change the model, and it changes."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import torch

import tarflow
from flow_cases import build
from tarflow.report.facts import insides, parameters_of, short, stack


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in ET.fromstring(svg).iter("text")]


def test_every_block_is_drawn_with_its_direction_and_depth() -> None:
    flow = build("unequal_depths", torch.float32)
    shown = texts(stack("s", flow))
    assert [t for t in shown if t.startswith("block")] == ["block 0", "block 1", "block 2"]
    assert [t for t in shown if "→" in t] == ["first → last", "last → first", "first → last"]
    weights = [sum(p.numel() for p in block.parameters()) for block in flow.blocks]
    assert [t for t in shown if "weights" in t] == [
        f"{n} layer{'s' * (n > 1)}, {short(w)} weights" for n, w in zip((3, 1, 2), weights, strict=True)
    ]
    assert sum(weights) == parameters_of(flow)


def test_directions_are_those_of_the_modules() -> None:
    flow = build("unconditional", torch.float32)
    flow.blocks[0].order = flow.blocks[1].order
    assert [t for t in texts(stack("s", flow)) if "→" in t] == ["last → first", "last → first"]


def test_tokens_darken_in_the_blocks_own_order() -> None:
    flow = build("unconditional", torch.float32)
    tokens = [e for e in ET.fromstring(stack("s", flow)).iter("rect") if e.attrib["class"] == "token"]
    rows = [tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]]
    for row, order in zip(rows, (1, -1), strict=True):
        places = sorted(row, key=lambda e: order * float(e.attrib["x"]))
        shades = [float(e.attrib["opacity"]) for e in places]
        assert shades == sorted(shades) and shades[0] < shades[-1]


def test_the_inside_says_what_is_computed() -> None:
    affine, additive = (" ".join(texts(*insides("i", build(n, torch.float32)))) for n in ("conditional", "additive"))
    assert "position + class" in affine and "exp(−log-scale)" in affine and "linear, 4 → 16" in affine
    assert "class" not in additive and "exp" not in additive and "volume-preserving" in additive
    assert "N(0, V)" in " ".join(texts(stack("s", build("additive", torch.float32))))


def test_blocks_of_other_kinds_are_drawn_each_with_what_it_computes() -> None:
    config = tarflow.TarFlowConfig(
        *(8, 4, 16, (1, 2, 1)),
        channels=1,
        head_dim=8,
        transforms=("spline-by-number", "affine-mixed", "affine-mixed"),
        start_token=True,
    )
    first, others = (" ".join(texts(svg)) for svg in insides("i", tarflow.TarFlow(config)))
    assert "block 0: " in first and "spline(x)" in first and "number after number" in first and "1 causal" in first
    assert "blocks 1, 2: " in others and "spline" not in others and "triangular" in others and "1 to 2 causal" in others
    assert "left as it is" not in first + others, "a start token stands before the first"
    ends = dataclasses.replace(config, layers=(1, 1, 1), transforms=("affine", "spline", "affine"))
    assert "blocks 0, 2: " in " ".join(texts(insides("i", tarflow.TarFlow(ends))[0])), "not 0 to 2"


def test_everything_is_inside_the_drawing() -> None:
    for name in ("two_tokens", "one_token_a_row", "non_square", "one_row"):
        svg = ET.fromstring(stack("s", build(name, torch.float32)))
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for rect in svg.iter("rect"):
            x, y, w, h = (float(rect.attrib[k]) for k in ("x", "y", "width", "height"))
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height, name
