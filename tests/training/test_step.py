"""One step: added up from micro-batches, skipped to the bit where it is not finite, and never waited for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flow_cases import build, images, labels
from tarflow.config import TrainingConfig
from tarflow.model.condition import Classes
from tarflow.model.flow import TarFlow
from tarflow.training import layers as recomputing
from tarflow.training.ema import EMA
from tarflow.training.layers import recompute_layers
from tarflow.training.optimizer import build_optimizer
from tarflow.training.step import TrainingStep, objective, training_batch

BATCH = 8


def make(name: str = "conditional", dtype: torch.dtype = torch.float32, **fields: Any) -> TrainingStep:
    flow = build(name, dtype)
    config = TrainingConfig(**{"batch_size": BATCH, "lr": 1e-2, "weight_decay": 0.1, "clip_norm": 0.05, **fields})
    return TrainingStep(flow, build_optimizer(flow, config), EMA(flow, 0.9), config=config)


def batch(flow: TarFlow, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    return images(flow, BATCH, seed, flow.dtype), labels(flow, BATCH)


def everything(step: TrainingStep) -> dict[str, Tensor]:
    """A copy of all that a step may move."""
    found = {f"flow.{k}": v for k, v in step.flow.state_dict().items()}
    assert step.ema is not None
    found |= {f"ema.{k}": v for k, v in step.ema.flow.state_dict().items()}
    found |= {"updates": torch.tensor(step.ema.updates)}
    for index, moments in step.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{index}.{k}": v for k, v in moments.items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


# --- micro-batches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conditional", "unconditional", "additive_conditional"])
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_add_up_to_the_step_of_the_batch(name: str, parts: int) -> None:
    whole, split = make(name, torch.float64), make(name, torch.float64, accumulate=parts)
    for seed in (1, 2, 3):
        x, y = batch(whole.flow, seed)
        want, got = whole(x, y), split(x, y)
        assert got.keys() == want.keys() == {"loss", "log_prob", "grad_norm"}
        assert float(want["grad_norm"]) > 0.05, "nothing is clipped, and so nothing is tested"
        for key in want:
            torch.testing.assert_close(got[key], want[key], atol=1e-12, rtol=1e-9)
    before, after = everything(whole), everything(split)
    for key in before:  # the base variance among them
        torch.testing.assert_close(after[key], before[key], atol=1e-9, rtol=1e-6, msg=key)


def test_what_is_measured_is_what_it_says() -> None:
    step = make(accumulate=2)
    before = copy.deepcopy(step.flow)
    x, y = batch(step.flow)
    measured = step(x, y)
    loss = objective(*before(x, y))
    torch.testing.assert_close(measured["loss"], loss.detach())
    torch.testing.assert_close(measured["log_prob"], before.log_prob(x, y).mean().detach())
    gradients = torch.autograd.grad(loss, list(before.parameters()))
    torch.testing.assert_close(measured["grad_norm"], torch.stack([g.norm() for g in gradients]).norm())
    clipped = torch.stack([p.grad.norm() for p in step.flow.parameters()]).norm()
    assert float(clipped) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("recompute", ["elementwise", "layers"])
def test_computing_again_is_the_same_step_to_the_bit(recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "LEAST_NUMBERS", 0)
    kept, again = make(), make()
    recompute_layers(again.flow, recompute)
    for seed in (1, 2):
        kept(*batch(kept.flow, seed))
        again(*batch(again.flow, seed))
    assert differing(everything(kept), everything(again)) == []


def test_without_averaging_the_weights_move_the_same() -> None:
    averaged, plain = make(), make()
    plain.ema = None
    for step in (averaged, plain):
        step(*batch(step.flow))
    assert all(torch.equal(a, b) for a, b in zip(averaged.flow.parameters(), plain.flow.parameters(), strict=True))


# --- what is not finite ----------------------------------------------------------------------------------------------


def poisoned_input(step: TrainingStep) -> None:
    """Loss and gradient are NaN."""
    x, y = batch(step.flow)
    x[3] = float("nan")
    step(x, y)


def poisoned_gradient(step: TrainingStep) -> None:
    """The loss is finite and one entry of the gradient is not, as where a derivative overflows."""
    infinite = torch.zeros_like(step.flow.blocks[1].position)
    infinite[0, 0] = float("inf")
    hook = step.flow.blocks[1].position.register_hook(lambda gradient: gradient + infinite)
    step(*batch(step.flow))
    hook.remove()


def poisoned_loss(step: TrainingStep) -> None:
    """The gradient is finite and the loss is not."""
    x, y = batch(step.flow)
    real = step.forward

    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        z, ladj = real(*args)
        return z, ladj + torch.tensor([[float("inf")]] + [[0.0]] * (len(ladj) - 1))

    step.forward = forward
    step(x, y)
    step.forward = real


POISONS = [poisoned_input, poisoned_gradient, poisoned_loss]


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", ["conditional", "additive"])
@pytest.mark.parametrize("decided_on_device", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_not_finite_moves_nothing(poison: Any, name: str, decided_on_device: bool, parts: int) -> None:
    step, untouched = make(name, accumulate=parts), make(name, accumulate=parts)
    for each in (step, untouched):
        each.decided_on_device = decided_on_device
        each(*batch(each.flow))
    before = everything(step)
    poison(step)
    poison(step)
    assert differing(everything(step), before) == []
    assert (int(step.skipped), int(step.skipped_in_a_row), int(step.longest_row)) == (2, 2, 2)
    for each in (step, untouched):  # and what comes after is as if they had not been
        each(*batch(each.flow, 2))
    assert differing(everything(step), everything(untouched)) == []
    assert len(differing(everything(step), before)) == len(before)
    assert (int(step.skipped), int(step.skipped_in_a_row), int(step.longest_row)) == (2, 0, 2)


def test_deciding_on_the_device_is_deciding_on_the_host() -> None:
    steps = make(), make()
    steps[1].decided_on_device = False
    for step in steps:
        for poison in (None, poisoned_input, None, poisoned_gradient, None):
            poison(step) if poison else step(*batch(step.flow))
    assert differing(*map(everything, steps)) == []


def test_a_first_step_may_be_skipped() -> None:
    step, untouched = make(), make()
    poisoned_input(step)
    for each in (step, untouched):
        each(*batch(each.flow))
    assert differing(everything(step), everything(untouched)) == []


# --- waiting ---------------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Collects the operations for which a host waits for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fields", [{}, {"accumulate": 2}, {"checkpoint_activations": "layers"}, {"clip_norm": 0.0}])
@pytest.mark.parametrize("name", ["conditional", "additive"])
def test_nothing_waits_for_the_device(name: str, fields: dict[str, Any]) -> None:
    step = make(name, **fields)
    pixels = torch.randint(0, 256, (30, *batch(step.flow)[0].shape[1:]), dtype=torch.uint8)
    classes = step.flow.config.num_classes
    y = torch.arange(30) % classes if classes else None
    measure = step.config.measure(256)
    with Waits() as waits:
        for index in range(5):  # across the end of an epoch
            x, labels_ = training_batch(
                pixels, y, index, config=step.config, condition=Classes(10), measure=measure, flip=True
            )
            step(x, labels_)
    assert waits.found == []
    with Waits() as waits:
        float(step(*batch(step.flow))["loss"])
        step.decided_on_device = False
        step(*batch(step.flow))
    assert len(waits.found) == 2, "what is looked for is not seen"
