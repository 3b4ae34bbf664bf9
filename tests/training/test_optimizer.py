"""What is decayed, how the learning rate goes, and how the averaged weights follow."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flow_cases import BASE, build
from tarflow import TarFlow, TarFlowConfig
from tarflow.config import TrainingConfig
from tarflow.training import ema as ema_module
from tarflow.training.ema import EMA
from tarflow.training.optimizer import build_optimizer, learning_rate


def test_only_matrices_decay() -> None:
    flow = TarFlow(TarFlowConfig(**BASE, num_classes=2))
    optimizer = build_optimizer(flow, TrainingConfig(weight_decay=0.5))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in flow.named_parameters():
        is_matrix = name.endswith("weight") and parameter.ndim == 2
        assert decays[id(parameter)] == (0.5 if is_matrix else 0.0), name
    assert len(decays) == len(list(flow.parameters()))


def test_learning_rate_warms_up_and_decays() -> None:
    config = TrainingConfig(lr=1.0, final_lr=0.1)
    rates = [learning_rate(s, config=config, steps=30, warmup=10) for s in range(31)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[5] == pytest.approx(0.55)
    assert rates[10] == pytest.approx(1.0)
    assert rates[20] == pytest.approx(0.55)  # half of the cosine
    assert rates[30] == pytest.approx(0.1)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, config=config, steps=5, warmup=0) == pytest.approx(1.0)


@pytest.mark.parametrize(("schedule", "halves"), [("linear", 20), ("trapezoid", 28)])
def test_other_schedules_fall_along_a_line(schedule: Literal["linear", "trapezoid"], halves: int) -> None:
    config = TrainingConfig(lr=1.0, final_lr=0.0, schedule=schedule)
    rates = [learning_rate(s, config=config, steps=30, warmup=10) for s in range(31)]
    assert rates[5] == pytest.approx(0.5) and rates[10] == 1.0
    assert rates[halves] == pytest.approx(0.5) and rates[30] == 0.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[26] == pytest.approx(1.0 if schedule == "trapezoid" else 0.2)


def test_average_is_the_recursion_with_its_warm_up() -> None:
    flow = TarFlow(TarFlowConfig(**BASE, transform="additive")).double()
    ema = EMA(flow, decay=0.5)
    expected = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    for n in range(20):
        with torch.no_grad():
            for tensor in flow.state_dict().values():
                tensor.add_(torch.randn_like(tensor))
        ema.update()
        decay = min(0.5, (1 + n) / (10 + n))
        for name, tensor in flow.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor
    for name, tensor in ema.flow.state_dict().items():  # the base variance among them
        torch.testing.assert_close(tensor, expected[name])


def test_no_averaging_is_the_weights_themselves() -> None:
    flow = TarFlow(TarFlowConfig(**BASE))
    ema = EMA(flow, decay=0.0)
    with torch.no_grad():
        flow.blocks[0].position.add_(1.0)
    ema.update()
    assert torch.equal(ema.flow.blocks[0].position, flow.blocks[0].position)
    assert not any(p.requires_grad for p in ema.flow.parameters()) and not ema.flow.training


def test_averaging_launches_a_few_kernels_whatever_the_number_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight on the device must not make `_foreach` operations go tensor by tensor: 824 launches for a large flow."""
    monkeypatch.setattr(ema_module, "NUMBERS_AT_ONCE", 500)
    flow = build("conditional", torch.float32, layers=(2, 2, 2))
    ema = EMA(flow, decay=0.5)
    parts = ema._parts
    assert len(parts) > 3 and parts[0].start == 0 and parts[-1].stop == len(list(flow.parameters()))
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts)), "a tensor is left out, or averaged twice"
    before = [p.detach().clone() for p in ema.flow.parameters()]
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(1.0)
    ema.updates = 1000
    with Launches() as launched:
        ema.update(torch.tensor(True))
    assert sum(name.startswith("_foreach") for name in launched.names) == 3 * len(parts)
    assert not any("lerp" in name for name in launched.names)
    for old, new in zip(before, ema.flow.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.5)


class Launches(TorchDispatchMode):
    """The names of the operations that were dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
