"""Muon: what it does to a matrix, that it is torch's, and that it is one optimizer to whoever saves and skips."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from flow_cases import BASE
from tarflow import TarFlow, TarFlowConfig
from tarflow.config import ConfigError, TrainingConfig
from tarflow.model.transformer import Layer
from tarflow.training.optimizer import Muon, build_optimizer, moments_of, orthogonalized, set_learning_rate

MUON = TrainingConfig(optimizer="muon", lr=0.01, weight_decay=0.1)


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_singular_values_come_near_to_one_and_directions_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = matrix.clone()
    s = torch.linalg.svdvals(orthogonalized(matrix))
    assert torch.equal(matrix, before)
    assert float(s.min()) > 0.6 and float(s.max()) < 1.25
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = left @ right
    assert float((orthogonalized(matrix) * turned).sum() / (turned.norm() * s.norm())) > 0.95


def test_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalized(torch.zeros(4, 6)), torch.zeros(4, 6))


def test_it_is_the_muon_of_torch_but_for_the_precision_of_its_products() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(8, 32))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    one = Muon(ours, [], [], lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        before = [p.detach().clone() for p in ours]
        one.step()
        other.step()
        for a, b, old in zip(ours, theirs, before, strict=True):
            with torch.no_grad():
                assert float((a - b).norm() / (a - old).norm()) < 0.05  # torch's products are bf16: three digits
                b.copy_(a)


def test_the_rest_is_adamw() -> None:
    torch.manual_seed(0)
    flow = TarFlow(TarFlowConfig(**BASE, num_classes=2))
    other = copy.deepcopy(flow)
    optimizers = [build_optimizer(flow, MUON), build_optimizer(other, TrainingConfig(lr=0.01, weight_decay=0.1))]
    inside = {id(p) for layer in flow.modules() if isinstance(layer, Layer) for p in layer.parameters() if p.ndim == 2}
    turned = {id(p) for p in optimizers[0].param_groups[0]["params"]}
    assert turned == inside and len(turned) == 4 * sum(BASE["layers"])
    for _ in range(3):
        for a, b in zip(flow.parameters(), other.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for (name, a), b in zip(flow.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) == (id(a) not in inside), name


def test_a_step_with_a_gradient_that_is_not_finite_leaves_everything_as_it_was() -> None:
    flow = TarFlow(TarFlowConfig(**BASE))
    optimizer = build_optimizer(flow, MUON)
    for bad in (False, True):
        for p in flow.parameters():
            p.grad = torch.full_like(p, torch.nan) if bad else torch.randn_like(p)
        before = [p.detach().clone() for p in flow.parameters()], copy.deepcopy(optimizer.state_dict())
        optimizer.found_inf = torch.tensor(float(bad))
        optimizer.step()
        assert all(torch.equal(p, old) for p, old in zip(flow.parameters(), before[0], strict=True)) == bad
    for index, moments in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1]["state"][index][name]) for name, value in moments.items())


def test_saved_and_loaded_it_goes_on_to_the_bit() -> None:
    torch.manual_seed(0)
    flow = TarFlow(TarFlowConfig(**BASE))
    optimizer = build_optimizer(flow, MUON)
    gradients = [[torch.randn_like(p) for p in flow.parameters()] for _ in range(4)]

    def move(target: TarFlow, moved: torch.optim.Optimizer, steps: slice) -> None:
        for each in gradients[steps]:
            for p, g in zip(target.parameters(), each, strict=True):
                p.grad = g
            set_learning_rate(moved, 0.005)
            moved.step()

    move(flow, optimizer, slice(0, 2))
    resumed = copy.deepcopy(flow)
    again = build_optimizer(resumed, MUON)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    move(flow, optimizer, slice(2, 4))
    move(resumed, again, slice(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(flow.parameters(), resumed.parameters(), strict=True))
    for group in again.param_groups:
        assert all(set(again.state[p]) == set(moments_of(group)) for p in group["params"])


def test_its_matrices_have_a_learning_rate_in_proportion() -> None:
    optimizer = build_optimizer(TarFlow(TarFlowConfig(**BASE)), TrainingConfig(optimizer="muon", lr=0.1, muon_lr=0.02))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.1, 0.1])
    set_learning_rate(optimizer, 0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.05, 0.05])


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="two dimensions"):
        Muon([nn.Parameter(torch.ones(3))], [], [], lr=0.1, weight_decay=0, betas=(0.9, 0.95))
    with pytest.raises(ConfigError, match="muon_lr"):
        TrainingConfig(muon_lr=0.1)
    with pytest.raises(ConfigError, match="fsdp"):
        TrainingConfig(optimizer="muon", strategy="fsdp")
