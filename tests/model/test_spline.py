"""The spline of each number and the affine map after it: its formula and its laws."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import slow_flow
from flow_cases import assert_close, unchanged
from spline_cases import drawn, every_shape, make
from tarflow.model.spline import Spline


def by_hand(spline: Spline, x: float, params: list[float]) -> tuple[float, float]:
    """z and ln ∂z/∂x of one number."""
    v, shift, *curve = params
    y, slope = slow_flow.spline(x, curve, spline.bins, spline.interval)
    log_scale = v if spline.bound is None else spline.bound * math.tanh(v / spline.bound)
    return (y - shift) * math.exp(-log_scale), math.log(slope) - log_scale


@every_shape
def test_it_is_the_formula_of_the_paper(dim: int, bins: int, interval: float, bound: float | None) -> None:
    spline = make(dim, bins, interval, bound)
    x, params = drawn(spline)
    with unchanged(x, params):
        z, ladj = spline(x, params)
    columns = params.unflatten(-1, (-1, dim))  # (2, rows, k, D)
    for i in range(2):
        for row in range(x.shape[1]):
            numbers = [by_hand(spline, float(x[i, row, d]), columns[i, row, :, d].tolist()) for d in range(dim)]
            assert_close(z[i, row], torch.tensor([a for a, _ in numbers], dtype=z.dtype), 1e-12)
            assert float(ladj[i, row]) == pytest.approx(sum(b for _, b in numbers), abs=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
@every_shape
def test_zeros_are_the_identity(
    dim: int, bins: int, interval: float, bound: float | None, dtype: torch.dtype, tolerance: float
) -> None:
    spline = make(dim, bins, interval, bound)
    x, params = drawn(spline, wild=0.0, dtype=dtype)
    z, ladj = spline(x, params)
    assert_close(z, x, tolerance)
    assert_close(ladj, torch.zeros_like(ladj), 2 * dim * tolerance)
    assert_close(spline.inverse(x, params), x, tolerance)


@pytest.mark.parametrize(("dtype", "wild", "tolerance"), [(torch.float32, 0.4, 1e-5), (torch.float64, 0.4, 1e-12)])
@every_shape
def test_the_inverse_is_the_inverse(
    dim: int, bins: int, interval: float, bound: float | None, dtype: torch.dtype, wild: float, tolerance: float
) -> None:
    spline = make(dim, bins, interval, bound)
    x, params = drawn(spline, 200, wild, dtype)
    with torch.no_grad():
        z, _ = spline(x, params)
        assert_close(spline.inverse(z, params), x, tolerance)
        assert_close(spline(spline.inverse(x, params), params)[0], x, 10 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_inverse_loses_no_more_than_z_has_digits(dtype: torch.dtype) -> None:
    """An ulp of y is an ulp over the slope of x, however steep and flat the bins are."""
    spline = make(16)
    x, params = drawn(spline, 500, wild=3.0, dtype=dtype)
    params[..., : 2 * spline.dim] = 0  # whose own rounding is another matter
    x = x.clamp(-1, 1)
    z, _ = spline(x, params)
    exact = x.double().clone().requires_grad_()
    (slope,) = torch.autograd.grad(spline(exact, params.double())[0].sum(), exact)
    lost = (spline.inverse(z, params) - x).abs().double() * slope.clamp(max=1)
    assert float(lost.max()) < 300 * torch.finfo(dtype).eps


@every_shape
def test_ladj_is_the_log_determinant_and_the_map_is_monotone(
    dim: int, bins: int, interval: float, bound: float | None
) -> None:
    spline = make(dim, bins, interval, bound)
    x, params = drawn(spline)
    x.requires_grad_()
    z, ladj = spline(x, params)
    (slopes,) = torch.autograd.grad(z.sum(), x)
    assert bool((slopes > 0).all())
    assert_close(slopes.log().sum(dim=-1), ladj)


@every_shape
def test_gradients_and_theirs_in_float64(dim: int, bins: int, interval: float, bound: float | None) -> None:
    spline = make(min(dim, 3), bins, interval, bound)
    x, params = (t[:1, :2].clone().requires_grad_() for t in drawn(spline))
    assert gradcheck(spline, (x, params))
    assert gradgradcheck(spline, (x, params))
    assert gradcheck(spline.inverse, (x, params))


def test_fields_decide_what_is_computed() -> None:
    spline = make(4)
    x, params = drawn(spline, dtype=torch.float32)
    z = spline(x, params)[0]
    wide = make(4, interval=2.0)
    assert not torch.equal(wide(x, params)[0], z)
    assert dataclasses.replace(spline.native, interval=2.0) == wide.native


def test_the_stable_rule_is_exact_where_both_branches_have_one_spline() -> None:
    """ln p is (1+g) ln p_c - g ln p_u, but for a constant, at any x."""
    spline, g = make(1, bound=None), 2.5
    x, conditional = drawn(spline, 50)
    conditional = conditional[:1, :1].expand(2, 50, -1)
    unguided = conditional.clone()
    unguided[..., 0] += 0.3  # wider, so that nothing is clipped
    unguided[..., 1] -= 0.7

    def log_density(params: Tensor) -> Tensor:
        z, ladj = spline(x, params)
        return ladj - 0.5 * z.square().sum(dim=-1)

    guided = spline.combine(conditional, unguided, g, "stable")
    constant = log_density(guided) - (1 + g) * log_density(conditional) + g * log_density(unguided)
    assert_close(constant, constant[:1, :1].expand_as(constant))
    assert not torch.allclose(guided, conditional)


@pytest.mark.parametrize("strength", [0.5, 10.0, 1e3])
@pytest.mark.parametrize("wild", [1.0, 30.0])
def test_the_stable_rule_stays_bounded(strength: float, wild: float) -> None:
    """No scale is larger than the conditional's, and no spline is bent further than the two branches are."""
    spline = make(6)
    z, conditional = drawn(spline, 100, wild)
    _, unguided = drawn(spline, 100, wild)
    for places in (strength, strength * torch.linspace(0, 1, 100, dtype=torch.float64).unsqueeze(1)):
        guided = spline.combine(conditional, unguided, places, "stable")
        (log_scale, shift), curve = guided[..., :12].chunk(2, dim=-1), guided[..., 12:]
        assert bool((log_scale <= conditional[..., :6] + 1e-9).all()) and torch.equal(curve, conditional[..., 12:])
        x = spline.inverse(z, guided)
        y = z * spline.log_scale(log_scale).exp() + shift
        assert bool(x.isfinite().all()) and bool((x.abs() <= 1.000001 * y.abs().clamp(min=spline.interval)).all())
