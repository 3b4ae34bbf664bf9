"""VectorFlow as an object: what it takes, what it is made of, saving and loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tarflow
from flow_cases import build, images, labels
from tarflow import ConfigError, SequenceFlow, TarFlow, VectorConfig, VectorFlow


def test_a_number_is_enough() -> None:
    flow = VectorFlow(5)
    assert flow.config == VectorConfig(5) and flow.sequence.tokens == 5 and flow.sequence.dim == 1
    assert flow.sequence.start_token and set(flow.sequence.transforms) == {"spline"}
    x = torch.randn(7, 5)
    flow.event.fit(x)
    assert flow.log_prob(x).shape == (7,) and tarflow.sample(flow, 3).shape == (3, 5)
    assert "vectors 5, 5 tokens of 1 number" in repr(flow) and "real, standardised" in repr(flow)


def test_a_number_as_condition_is_so_many_numbers() -> None:
    flow = VectorFlow(5, condition=3)
    assert flow.config.condition == "vector:3"
    x, c = torch.randn(4, 5), torch.randn(4, 3)
    assert flow.log_prob(x, c).shape == (4,) and tarflow.sample(flow, 4, c).shape == (4, 5)


def test_a_short_vector_given_numbers_is_one_token_unless_there_are_orders_of_tokens() -> None:
    assert VectorConfig(5, condition=3).tokens == 1 and VectorConfig(5).tokens == 5
    assert VectorConfig(5, condition="image:1:8:8:4").tokens == 1
    assert VectorConfig(5, condition="classes:3").tokens == VectorConfig(5, condition="classes:3+vector:2").tokens == 5
    assert VectorConfig(2, condition=3).tokens == 2 and VectorConfig(9, condition=3).tokens == 9
    assert VectorConfig(5, condition=3, orders=("raster",) * 4).tokens == 5
    assert VectorConfig(5, tokens=5, condition=3).tokens == 5
    assert VectorConfig(5, condition="classes:3").tokens == VectorConfig(5, condition="vector:3+classes:3").tokens == 5


def test_numbers_that_share_a_token_see_each_other() -> None:
    assert VectorConfig(6, tokens=2).transform == "spline-by-number"
    flow = build("vector_in_pairs")
    score = torch.autograd.functional.jacobian(lambda x: flow.encode(x)[0][0, 0, 1], images(flow, 1))
    assert score[0, 0] != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_and_in_which_dtype_it_is_made_are_the_callers(dtype: torch.dtype) -> None:
    flow = VectorFlow(3, width=16, layers=(1,), dtype=dtype)
    assert {tensor.dtype for tensor in flow.state_dict().values()} == {dtype}
    assert all(t.is_meta for t in VectorFlow(3, width=16, layers=(1,), device="meta").state_dict().values())


@pytest.mark.parametrize(
    ("arguments", "fields", "message"),
    [
        ((0,), {}, r"^dim: expected 1 to"),
        ((5, 2), {}, r"^tokens: expected a divisor of the 5 numbers.*, got 2"),
        ((5, 0), {}, r"^tokens: expected a divisor"),
        ((5,), {"widht": 32}, r"^widht: no such field; perhaps width"),
        ((5,), {"transform": "spine"}, r"^transforms: expected one of"),
        ((5,), {"orders": ("raster",)}, r"^orders: expected one for each of"),
        ((5, None, "vectors:3"), {}, r"^condition: expected"),
        ((5,), {"support": ("real", "real")}, r"^support: expected one for all, or one for each of 5"),
        ((VectorConfig(5), 5), {}, r"^dim: expected a number where other fields are given"),
        ((VectorConfig(5),), {"width": 32}, r"^dim: expected a number where other fields are given"),
        (("5",), {}, r"^dim: expected a whole number"),
    ],
)
def test_what_cannot_be_made_is_named(arguments: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VectorFlow(*arguments, **fields)


def test_a_config_that_was_resolved_is_the_same_config() -> None:
    config = VectorConfig(6, tokens=3, condition="classes:4", support="positive")
    assert VectorConfig(**tarflow.config.to_dict(config)) == config  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["vector", "vector_of_supports", "standardised", "supports", "conditional"])
def test_saved_and_loaded_is_the_same_flow_of_the_same_class(name: str, tmp_path: Path) -> None:
    flow = build(name, torch.float32)
    flow.save_pretrained(tmp_path)
    for loaded in (tarflow.from_pretrained(tmp_path), type(flow).from_pretrained(tmp_path)):
        assert type(loaded) is type(flow) and loaded.config == flow.config and not loaded.training
        x, y = images(flow, 3, dtype=torch.float32), labels(flow, 3)
        assert torch.equal(loaded.log_prob(x, y), flow.log_prob(x, y))
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored.get("kind", "images") == flow.kind  # images are what nobody has to name


def test_a_flow_of_another_class_is_not_loaded_by_mistake(tmp_path: Path) -> None:
    build("vector", torch.float32).save_pretrained(tmp_path)
    for kind, cls in (("images", TarFlow), ("sequences", SequenceFlow)):
        with pytest.raises(ConfigError, match=rf"config\.json: expected a flow on {kind}, got one on vectors"):
            cls.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "graphs", "model": {}}')
    with pytest.raises(ConfigError, match=r"config\.json: kind: expected one of images, .*, got 'graphs'"):
        tarflow.from_pretrained(tmp_path)
