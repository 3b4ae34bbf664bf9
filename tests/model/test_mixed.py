"""The numbers of a token mixed by a triangular matrix before they are transformed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flow_cases import SEQUENCE, assert_close
from tarflow import SequenceConfig
from tarflow.model.mixed import Mixed
from tarflow.model.transform import make_transform

every_kind = pytest.mark.parametrize("kind", ["affine", "additive", "spline"])


def transform_of(kind: str, dim: int, **changes: Any) -> Mixed:
    """One whose matrix is random, in float64."""
    config = SequenceConfig(**{**SEQUENCE, "dim": dim, "transforms": (f"{kind}-mixed",) * 2, **changes})
    transform = make_transform(config.transforms[0], config, dtype=torch.float64)
    assert isinstance(transform, Mixed)
    torch.nn.init.normal_(transform.lower, std=0.3, generator=torch.Generator().manual_seed(0))
    return transform.requires_grad_(False)


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_kind
def test_at_first_it_is_the_transform_inside(kind: str) -> None:
    config = SequenceConfig(**{**SEQUENCE, "transforms": (f"{kind}-mixed", kind)})
    around, plain = (make_transform(name, config, dtype=torch.float64) for name in config.transforms)
    x, params = normal(3, 2, 3, seed=1), normal(3, 2, plain.size, seed=2)
    for got, want in zip(around(x, params), plain(x, params), strict=True):
        assert torch.equal(got, want)
    assert torch.equal(around.inverse(x, params), plain.inverse(x, params))


def test_a_conditional_is_a_gaussian_with_full_covariance() -> None:
    """L x ~ N(shift, diag(σ²)), so that x has the mean L⁻¹ shift and the covariance L⁻¹ diag(σ²) L⁻ᵀ."""
    transform = transform_of("affine", 6)
    x, params = normal(1, 4, 6, seed=3), normal(1, 4, transform.size, seed=4)
    z, ladj = transform(x, params)
    lower = torch.eye(6, dtype=torch.float64) + transform.lower.tril(-1)
    v, shift = params[0].chunk(2, dim=-1)
    back = torch.linalg.inv(lower)
    wanted = MultivariateNormal(shift @ back.mT, back @ torch.diag_embed((2 * v).exp()) @ back.mT)
    got = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(dim=-1) + ladj
    assert_close(got[0], wanted.log_prob(x[0]))


@every_kind
def test_nothing_above_the_diagonal_is_read(kind: str) -> None:
    transform = transform_of(kind, 5)
    x, params = normal(2, 3, 5, seed=5), normal(2, 3, transform.size, seed=6)
    z, _ = transform(x, params)
    again = transform.inverse(z, params)
    transform.lower += torch.full((5, 5), torch.nan, dtype=torch.float64).triu()
    assert torch.equal(transform(x, params)[0], z) and torch.equal(transform.inverse(z, params), again)
    assert_close(again, x)


def test_autocast_rounds_no_number_of_the_state() -> None:
    transform = transform_of("affine", 5).float()
    x, params = normal(2, 3, 5, seed=7).float(), normal(2, 3, transform.size, seed=8).float()
    with torch.autocast("cpu", torch.bfloat16):
        z, _ = transform(x, params)
        back = transform.inverse(z, params)
    assert torch.equal(z, transform(x, params)[0]) and torch.equal(back, transform.inverse(z, params))


@every_kind
def test_gradients_of_both_ways(kind: str) -> None:
    transform = transform_of(kind, 3).requires_grad_()
    x, params = (0.5 * normal(2, 1, 3, seed=9)).requires_grad_(), normal(2, 1, transform.size, seed=10).requires_grad_()
    assert torch.autograd.gradcheck(transform, (x, params))
    assert torch.autograd.gradcheck(transform.inverse, (x, params))
