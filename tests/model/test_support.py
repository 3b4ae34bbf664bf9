"""Preprocessing: supports and standardisation are in the density, invertible, and give numbers wherever x is one."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import biject_to, constraints

from flow_cases import assert_close, build, images, labels
from tarflow import ConfigError, SequenceConfig, SequenceFlow, VectorFlow, denoise, sample
from tarflow.model.events import Tokens
from tarflow.model.support import SUPPORTS, Preprocessing, make_support
from tarflow.sampling import denoise as denoise_module

NAMES = ["real", "positive", "interval:0:1", "interval:-3:1000"]
INSIDE = {  # near the ends, too
    "real": [-1e6, -1.0, 0.0, 1e-30, 1e6],
    "positive": [1e-30, 1e-6, 1.0, 1e6, 1e30],
    "interval:0:1": [1e-30, 1e-6, 0.5, 0.999, 1 - 1e-7],
    "interval:-3:1000": [-2.9999, -1.0, 1.0, 999.0, 999.999],
}
OUTSIDE = {
    "real": [math.inf, -math.inf],
    "positive": [0.0, -0.0, -1.0, math.inf],
    "interval:0:1": [0.0, 1.0, -1e-9, 1.1, math.inf],
    "interval:-3:1000": [-3.0, 1000.0, 1e9, -math.inf],
}


def test_every_support_is_looked_at() -> None:
    assert {name.partition(":")[0] for name in NAMES} == set(SUPPORTS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_support_is_mapped_onto_all_numbers_and_back(name: str, dtype: torch.dtype) -> None:
    support = make_support(name)
    x = torch.tensor(INSIDE[name], dtype=dtype, requires_grad=True)
    assert bool(support.contains(x).all()) and bool(support.constraint.check(x).all())
    u, log_slope = support.forward(x)
    (slope,) = torch.autograd.grad(u.sum(), x, retain_graph=True)
    assert_close(log_slope, slope.log(), 1e-6 if dtype == torch.float32 else 1e-12)
    assert_close(support.inverse(u), x, 1e-4 if dtype == torch.float32 else 1e-10)
    if log_slope.requires_grad:
        (curve,) = torch.autograd.grad(log_slope.sum(), x)
        assert bool(curve.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_are_inside_however_far_out_they_come_from(name: str, dtype: torch.dtype) -> None:
    support = make_support(name)
    u = torch.tensor([-1e4, -200.0, -50.0, 0.0, 50.0, 80.0], dtype=dtype)
    assert bool(support.contains(support.inverse(u)).all())
    assert bool((support.inverse(u).diff() >= 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_outside_has_a_density_of_zero_and_harms_no_other_row(name: str) -> None:
    flow = build("vector_of_supports", support=("real", name, "real", "real"))
    x = images(flow, 1).repeat(len(OUTSIDE[name]) + 2, 1)
    x[1:-1, 1] = torch.tensor(OUTSIDE[name], dtype=x.dtype)
    x[-1, 1] = math.nan
    x.requires_grad_()
    log_prob = flow.log_prob(x)
    assert bool(log_prob[0].isfinite()) and log_prob[-1].isnan()
    assert bool((log_prob[1:-1] == -math.inf).all())
    assert_close(log_prob[:1], flow.log_prob(x[:1]))
    (score,) = torch.autograd.grad(log_prob[:-1].sum(), x)
    assert bool(score[:1].isfinite().all()) and not score[1:].any()
    assert_close(score[:1], torch.autograd.grad(flow.log_prob(x[:1]).sum(), x)[0][:1])
    z, ladj = flow.encode(x[1:2])
    assert bool((z == math.inf).all()) and not ladj.any()


def test_gradients_of_the_weights_are_numbers_for_every_x_of_the_support() -> None:
    flow = VectorFlow(4, width=16, layers=(1,), support=tuple(NAMES))
    x = torch.tensor(list(INSIDE.values())).t().requires_grad_()
    log_prob = flow.log_prob(x)
    log_prob.sum().backward()
    assert bool(log_prob.isfinite().all()) and x.grad is not None and bool(x.grad.isfinite().all())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in flow.parameters())


def test_the_density_integrates_to_one_over_a_support() -> None:
    flow = build("vector_of_supports", dim=2, support=("positive", "interval:0:1"), transform="affine")
    axis = torch.linspace(-14, 14, 281, dtype=torch.float64)  # of log x and of logit x
    u = torch.cartesian_prod(axis, axis)
    x = torch.stack([u[:, 0].exp(), u[:, 1].sigmoid()], dim=1)
    weight = x[:, 0] * x[:, 1] * (1 - x[:, 1])  # |∂x/∂u|
    with torch.no_grad():
        density = flow.log_prob(x).exp() * weight
    assert float(density.sum() * 0.1**2) == pytest.approx(1, abs=1e-4)


# --- standardising ---------------------------------------------------------------------------------------------------


def test_fitting_standardises_the_mapped_numbers() -> None:
    flow = VectorFlow(3, width=16, layers=(1,), support=("real", "positive", "interval:-1:1"), dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    u = torch.randn(500, 3, generator=g, dtype=torch.float64) * torch.tensor([100.0, 0.1, 2.0]) + 7
    x = torch.stack([u[:, 0], u[:, 1].exp(), u[:, 2].sigmoid() * 2 - 1], dim=1)
    flow.event.fit(x)
    tokens, ladj = flow.event.to_tokens(x)
    assert_close(tokens[..., 0].mean(dim=0), torch.zeros(3, dtype=torch.float64), 1e-6)
    assert_close(tokens[..., 0].std(dim=0, correction=0), torch.ones(3, dtype=torch.float64), 1e-6)
    assert_close(flow.event.from_tokens(tokens), x, 1e-6)
    for i in range(3):
        matrix = jacobian(lambda row: flow.event.to_tokens(row)[0].flatten(), x[i : i + 1]).view(3, 3)
        assert_close(torch.as_tensor(ladj)[i].sum(), torch.linalg.slogdet(matrix).logabsdet)


def test_tokens_of_a_sequence_share_their_mean() -> None:
    config = SequenceConfig(tokens=4, dim=2, width=64, layers=(1,))
    flow = SequenceFlow(config)
    x = torch.randn(50, 4, 2) * torch.tensor([3.0, 0.2]) + torch.tensor([5.0, -1.0])
    flow.event.fit(x)
    z = flow.event.to_tokens(x)[0]
    assert_close(z.mean(dim=(0, 1)), torch.zeros(2), 1e-4)
    assert_close(z.std(dim=(0, 1), correction=0), torch.ones(2), 1e-4)
    plain = SequenceFlow(SequenceConfig(tokens=4, dim=2, width=64, layers=(1,), standardise=False))
    assert not [name for name in plain.state_dict() if name.startswith("event")]
    plain.event.fit(x)
    assert torch.equal(plain.event.to_tokens(x)[0], x)


def test_a_scale_of_the_data_is_a_constant_of_the_density() -> None:
    """Data in other units: the same flow, and a log-density that differs by the logarithm of the units."""
    x = torch.randn(200, 3, dtype=torch.float64)
    densities = []
    for unit in (1.0, 1e6):
        torch.manual_seed(0)
        flow = VectorFlow(3, width=16, layers=(1,), dtype=torch.float64)
        flow.event.fit(x * unit)
        densities.append(flow.log_prob(x * unit) + 3 * math.log(unit))
    assert_close(densities[0], densities[1], 1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 1.0], [2.0, 0.0]], r"x: expected numbers of the support positive, got 0 in row 1, number 1"),
        ([[1.0, 1.0], [math.nan, 2.0]], r"x: expected numbers of the support real, got nan in row 1, number 0"),
        ([[1.0, 1.0], [1.0, 2.0]], r"x: number 0 is 1 in every row: it has no density"),
        ([[1.0, 1.0, 1.0]], r"x: expected vectors \(B, 2\), got \(1, 3\)"),
    ],
)
def test_what_cannot_be_fitted_is_named(rows: list[list[float]], message: str) -> None:
    flow = VectorFlow(2, width=16, layers=(1,), support=("real", "positive"))
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        flow.event.fit(torch.tensor(rows))
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())


def test_nothing_is_fitted_to_no_rows() -> None:
    with pytest.raises(ValueError, match="x: expected a row at least"):
        VectorFlow(2, width=16, layers=(1,)).event.fit(torch.zeros(0, 2))


@pytest.mark.parametrize(
    "support", ["postive", "interval:1:0", "interval:0", "interval:a:b", "interval:0:inf", ("real",)]
)
def test_a_support_that_cannot_be_is_refused(support: str | tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"^support: expected one"):
        VectorFlow(2, support=support)
    with pytest.raises(ConfigError, match=r"^support: expected one"):
        SequenceConfig(tokens=2, dim=2, width=64, layers=(1,), support=support)


# --- as torch knows it ----------------------------------------------------------------------------------------------


def test_the_support_is_torchs_constraint_on_an_event() -> None:
    mixed = Tokens((3, 2), ("positive", "interval:0:1")).support
    assert mixed.event_dim == 2
    x = torch.full((5, 3, 2), 0.5)
    x[1, 2, 0], x[2, 0, 1] = -1.0, 2.0
    assert mixed.check(x).tolist() == [True, False, False, True, True]
    assert Tokens((3, 2)).support.base_constraint is constraints.real
    assert build("unconditional").event.support.event_dim == 3
    back = biject_to(mixed)(torch.randn(4, 3, 2) * 5)
    assert bool(mixed.check(back).all())


def test_a_distribution_validates_by_the_support() -> None:
    flow = build("vector_of_supports", torch.float32)
    inside, outside = images(flow, 3, dtype=torch.float32), -images(flow, 3, dtype=torch.float32)
    p = flow.distribution(validate_args=True)  # whatever is torch's default: its compiler turns it off
    assert p.event_shape == (4,) and p.support.event_dim == 1
    assert torch.equal(p.log_prob(inside), flow.log_prob(inside))
    with pytest.raises(ValueError, match="support"):
        p.log_prob(outside)
    assert bool((flow.distribution(validate_args=False).log_prob(outside) == -math.inf).all())
    assert bool(p.support.check(p.sample((20,))).all())


@pytest.mark.parametrize("name", ["vector_of_supports", "supports"])
def test_samples_have_the_density_that_log_prob_gives_them(name: str) -> None:
    flow = build(name)
    x = sample(flow, 20, labels(flow, 20), solver="sequential")
    assert bool(flow.event.support.check(x).all())
    z, _ = flow.encode(x)
    assert_close(flow.decode(z), x, 1e-8)


@pytest.mark.parametrize("name", ["vector_of_supports", "supports"])
def test_the_score_goes_through_the_preprocessing_block_by_block_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = build(name).requires_grad_(False)
    x = images(flow, 3).requires_grad_()
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    want = (x + 0.01 * score).detach()
    assert_close(denoise(flow, x, 0.1), want)
    monkeypatch.setattr(denoise_module, "GRAPH_BYTES", denoise_module.graph_bytes(flow) - 1)
    assert_close(denoise(flow, x, 0.1), want)


def test_numbers_in_a_row_that_share_a_support_are_one_part() -> None:
    made = Preprocessing(("real", "real", "positive", "real"), 4, False)
    assert made.lengths == [2, 1, 1] and "positive" in repr(made)
