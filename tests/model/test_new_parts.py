"""A new transform, condition, base or order is one class and one line in its table; flow, laws and users take it.

Each toy below is what a newcomer would write. Nothing else is told of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

import tarflow
from flow_cases import BASE, assert_close, build, images, latents, randomise
from tarflow import SequenceConfig, SequenceFlow, TarFlow, TarFlowConfig
from tarflow.architecture import CONDITIONS, TRANSFORMS, ConditionEntry, TransformEntry
from tarflow.cli import main
from tarflow.model.base import BASES, Normal
from tarflow.model.condition import Condition, Value
from tarflow.model.context import Embedded
from tarflow.model.order import ORDERS

SOLVERS = [tarflow.Sequential(), tarflow.Jacobi(tol=1e-12)]


class Angle(Condition):
    """An angle a row, in radians; NaN is null, and what stands for it is learned."""

    null = math.nan

    def __init__(self, turns: int, **made: Any) -> None:
        super().__init__()
        self.turns = turns

    def __bool__(self) -> bool:
        return True

    def check(self, c: Any, batch: int, device: torch.device) -> Tensor | None:
        if c is not None and tuple(c.shape) != (batch,):
            raise ValueError(f"y: expected ({batch},) angles, got {tuple(c.shape)}")
        return None if c is None else c.to(device)

    def missing(self, c: Tensor | None) -> Tensor | None:
        return None if c is None else c.isnan()

    def embedding(self, width: int, **made: Any) -> nn.Module:
        return AngleEmbedding(self.turns, width, **made)


class AngleEmbedding(nn.Module):
    def __init__(self, turns: int, width: int, **made: Any) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.zeros(1, width, **made))
        self.turns, self.linear = turns, nn.Linear(2, width, **made)

    def forward(self, c: Tensor | None) -> Embedded:
        if c is None:
            return Embedded(self.null.unsqueeze(0))
        angle = c.nan_to_num() * self.turns
        known = self.linear(torch.stack([angle.cos(), angle.sin()], dim=1).to(self.null.dtype))
        return Embedded(torch.where(c.isnan().unsqueeze(1), self.null, known).unsqueeze(1))


class Logistic(Normal):
    """The logistic distribution in every number."""

    def log_prob(self, z: Tensor) -> Tensor:
        return (-z - 2 * nn.functional.softplus(-z)).sum(dim=2)

    def sample(self, noise: Tensor) -> Tensor:
        return torch.special.log_ndtr(noise) - torch.special.log_ndtr(-noise)

    def standardised(self, z: Tensor) -> Tensor:
        return torch.special.ndtri(torch.sigmoid(z))


def assert_laws(flow: SequenceFlow, y: Value = None) -> None:
    """Inverse, log-determinant, solvers, and guidance of zero."""
    x = images(flow, 3)
    z, ladj = flow.encode(x, y)
    assert_close(flow.decode(z, y), x)
    for i in range(3):
        row = flow.conditions.rows(y, slice(i, i + 1))
        matrix = jacobian(lambda x, row=row: flow.encode(x, row)[0].flatten(), x[i : i + 1]).flatten(1)
        assert_close(ladj[i], torch.linalg.slogdet(matrix).logabsdet)
    assert_close(flow.log_prob(x, y), flow.base.log_prob(z).sum(dim=1) + ladj)
    noise = latents(flow, 3)
    reference = flow.decode(flow.base.sample(noise), y)
    for solver in SOLVERS:
        assert_close(tarflow.sample(flow, 3, y, noise=noise, solver=solver), reference, 1e-8)
    none = tarflow.Guidance(0.0)
    assert_close(tarflow.sample(flow, 3, y, none, noise=noise, solver="sequential"), reference, 1e-8)
    x = x.requires_grad_()
    flow.log_prob(x, y).sum().backward()
    assert all(
        p.grad is not None and bool(p.grad.abs().sum() > 0) for p in [x, *(b.proj_out.weight for b in flow.blocks)]
    )


def made(**changes: Any) -> SequenceFlow:
    fields = dict(tokens=4, dim=3, width=16, head_dim=8, layers=(1, 1), log_scale_bound="none")
    return randomise(SequenceFlow(SequenceConfig(**{**fields, **changes})).double())


@pytest.fixture
def two_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMS, "two_slopes", TransformEntry("toy_transform:TwoSlopes", scales=True))


@pytest.mark.usefixtures("two_slopes")
def test_a_new_transform_obeys_the_laws(tmp_path: Path) -> None:
    assert_laws(made(transforms=("two_slopes", "affine")))
    flow = randomise(TarFlow(TarFlowConfig(**{**BASE, "transform": "two_slopes", "num_classes": 2})).double())
    assert_laws(flow, torch.tensor([0, 1, -1]))
    guided = tarflow.sample(flow, 2, torch.tensor([0, 1]), tarflow.Guidance(1.0))
    assert not torch.equal(guided, tarflow.sample(flow, 2, torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="guidance rule: expected 'paper' for this transform"):
        tarflow.sample(flow, 2, torch.tensor([0, 1]), tarflow.Guidance(1.0, rule="stable"))
    flow.save_pretrained(tmp_path / "saved")
    x, y = images(flow, 2), torch.tensor([0, 1])
    assert torch.equal(TarFlow.from_pretrained(tmp_path / "saved").log_prob(x, y), flow.log_prob(x, y))


@pytest.mark.usefixtures("two_slopes")
def test_the_command_line_takes_a_new_transform(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    small = ["--patch-size", "4", "--width", "16", "--head-dim", "8", "--layers", "1", "1", "--steps", "2"]
    assert main(["train", "--recipe", "digits", *small, "--transform", "two_slopes", "--out", run]) == 0
    assert main(["sample", run, "-n", "2", "--out", str(tmp_path / "x.npz")]) == 0
    assert main(["evaluate", run, "--draws", "1", "--float64", "0"]) == 0
    assert "two_slopes" in (tmp_path / "run" / "config.json").read_text()


def test_a_new_condition_obeys_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONDITIONS, "angle", ConditionEntry(f"{__name__}:Angle", "TURNS"))
    flow = made(condition="angle:2", orders=("raster", "random:1"))
    y = torch.tensor([0.5, -1.0, math.nan], dtype=torch.float64)
    assert_laws(flow, y)
    x = images(flow, 3)
    density, null = flow.log_prob(x, y), flow.log_prob(x)
    assert bool((density[:2] != null[:2]).all()) and density[2] == null[2]
    assert_close(flow.log_prob(x, y + math.pi), density)
    dropped = flow.conditions.drop(y, torch.tensor([True, False, False]))
    assert_close(flow.log_prob(x, dropped)[0], null[0])
    with pytest.raises(ValueError, match=r"y: expected \(3,\) angles, got \(3, 1\)"):
        flow.log_prob(x, y[:, None])
    noise = latents(flow, 3)
    plain, guided = (tarflow.sample(flow, 3, y, g, noise=noise) for g in (None, tarflow.Guidance(1.0)))
    assert bool((plain[:2] != guided[:2]).any()) and tarflow.denoise(flow, x, 0.1, y).shape == x.shape
    several = made(condition="classes:2+angle:1")
    assert_laws(several, (torch.tensor([0, 1, -1]), y))


def test_a_new_base_obeys_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASES, "logistic", Logistic)
    flow = made(base="logistic")
    assert_laws(flow)
    z = flow.base.sample(latents(flow, 4))
    assert_close(flow.base.sample(flow.base.standardised(z)), z)
    reference = build("permuted")
    assert not torch.allclose(flow.log_prob(images(flow, 2)), reference.log_prob(images(reference, 2)))


def test_a_new_order_obeys_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ORDERS, "even_first", lambda count: [*range(0, count, 2), *range(1, count, 2)])
    flow = made(orders=("even_first", "raster"), tokens=5)
    assert flow.blocks[0].order.permutation == (0, 2, 4, 1, 3)
    assert_laws(flow)
