"""Parameters against the model that is built, and products against PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flow_cases import CASES, config_of, labels, randomise
from tarflow import recipes
from tarflow.config import Recompute, TarFlowConfig, TrainingConfig
from tarflow.model.flow import TarFlow
from tarflow.planning.work import (
    fed_tokens,
    forward_flops,
    inner_weights,
    muon_flops,
    parameters,
    recomputed_flops,
    training_flops,
)
from tarflow.training.layers import recompute_layers
from tarflow.training.optimizer import build_optimizer, orthogonalized
from tarflow.training.step import objective

every_case = pytest.mark.parametrize("name", CASES)


def hidden_flops(config: TarFlowConfig, images: int) -> int:
    """The half of attention that causality hides, which attention written as products computes all the same."""
    count = fed_tokens(config)
    return images * sum(config.layers) * 4 * config.width * (count**2 - count * (count + 1) // 2)


def counted(run: Any) -> int:
    # The fused attention of the CPU is unknown to the counter; written as products it is not.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@every_case
def test_parameters_are_those_of_the_model(name: str) -> None:
    config = config_of(name)
    with torch.device("meta"):
        flow = TarFlow(config)
    assert parameters(config) == sum(p.numel() for p in flow.parameters())


@pytest.mark.parametrize("name", recipes.names())
def test_parameters_of_a_recipe_are_those_of_its_model(name: str) -> None:
    fields = {"image_size": 8, "channels": 1, "num_classes": 7} | recipes.load(name)["model"]
    config = TarFlowConfig(**fields)
    with torch.device("meta"):
        flow = TarFlow(config)
    assert parameters(config) == sum(p.numel() for p in flow.parameters())


@every_case
def test_a_forward_pass_multiplies_as_often_as_pytorch_counts(name: str) -> None:
    config = config_of(name)
    flow, x = TarFlow(config), torch.zeros(3, config.channels, *config.image_shape)
    y = labels(flow, 3)
    with torch.no_grad():
        found = counted(lambda: flow(x, y))
    assert found == forward_flops(config, 3) + hidden_flops(config, 3)


@every_case
@pytest.mark.parametrize("recompute", ["nothing", "elementwise", "layers"])
def test_a_step_multiplies_as_often_as_pytorch_counts(
    name: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tarflow.training.layers.LEAST_NUMBERS", 0)
    config = config_of(name)
    flow, x = randomise(TarFlow(config)), torch.zeros(3, config.channels, *config.image_shape)
    recompute_layers(flow, recompute)
    y = labels(flow, 3) if config.condition != "auto" else None
    found = counted(lambda: objective(*flow(x, y)).backward())
    again = recomputed_flops(config, 3, recompute)
    hidden = hidden_flops(config, 3) * (4 if recompute == "layers" else 3)
    want = training_flops(config, 3) + again + hidden
    if y is None:
        assert found == want
    else:  # no gradient is wanted of its values, nor of what the last layer makes of a prefix
        assert 0.8 * want < found < want
    assert (again > 0) == (recompute == "layers")


@every_case
def test_muon_multiplies_as_often_as_pytorch_counts(name: str) -> None:
    config = config_of(name)
    matrices = build_optimizer(TarFlow(config), TrainingConfig(optimizer="muon")).param_groups[0]["params"]
    assert sum(p.numel() for p in matrices) == inner_weights(config)
    assert counted(lambda: [orthogonalized(p) for p in matrices]) == muon_flops(config)
