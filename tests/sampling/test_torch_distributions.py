"""What is built of distributions in torch works on every kind of flow: transformed, independent, expanded, mixed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    ExpTransform,
    Independent,
    MixtureSameFamily,
    ReshapeTransform,
    TransformedDistribution,
)

from flow_cases import assert_close, build

KINDS: dict[str, Any] = {  # of a flow in the table of cases: what it is given
    "unconditional": None,
    "conditional": torch.tensor([0, 2]),
    "image_given_numbers": torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 0.0]]).double(),
    "bounded_vector": None,
}


@pytest.fixture(params=KINDS)
def p(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return build(request.param).distribution(KINDS[request.param], validate_args=True)


def test_a_transformed_one_has_the_density_with_the_log_det(p: Any) -> None:
    axes, count = len(p.event_shape), p.event_shape.numel()
    scaled = TransformedDistribution(p, [AffineTransform(1.0, 2.0, event_dim=axes)], validate_args=False)
    y = scaled.sample((2,))
    assert y.shape == (2, *p.batch_shape, *p.event_shape) and scaled.event_shape == p.event_shape
    assert_close(scaled.log_prob(y), p.log_prob((y - 1) / 2) - count * math.log(2))
    positive = TransformedDistribution(p, [ExpTransform()])
    y = positive.rsample((2,))
    assert y.requires_grad and positive.has_rsample and bool(positive.support.check(y).all())  # type: ignore[attr-defined]
    assert_close(positive.log_prob(y), p.log_prob(y.log()) - y.log().flatten(-axes).sum(dim=-1), 1e-8)
    flat = TransformedDistribution(p, [ReshapeTransform(p.event_shape, torch.Size([count]))])
    assert flat.event_shape == (count,) and flat.rsample().shape == (*p.batch_shape, count)


def test_expanded_ones_are_the_same_many_times(p: Any) -> None:
    shape = (4, *p.batch_shape)
    more = p.expand(shape)
    x = more.sample((2,))
    assert x.shape == (2, *shape, *p.event_shape) and more.rsample().shape == (*shape, *p.event_shape)
    assert_close(more.log_prob(x), p.log_prob(x))
    assert more.has_rsample and more.event_shape == p.event_shape and more._validate_args
    whole = Independent(more, len(shape))
    assert whole.batch_shape == () and whole.event_shape == (*shape, *p.event_shape)
    assert_close(whole.log_prob(x), p.log_prob(x).flatten(1).sum(dim=1))
    assert bool(whole.support.check(x).all())  # type: ignore[attr-defined]
    transformed = TransformedDistribution(p, [ExpTransform()]).expand(shape)
    assert transformed.log_prob(transformed.sample()).shape == shape
    mixture = MixtureSameFamily(Categorical(torch.ones(shape).movedim(0, -1)), _last(p, 4))
    assert_close(mixture.log_prob(x[:, 0]), p.log_prob(x[:, 0]), 1e-6)  # of parts that are all the same


def _last(p: Any, count: int) -> Any:
    """p with an axis of equal ones behind its batch."""
    flow, given = p.flow, p.flow.conditions.rows(p.y, p.rows.reshape(-1))
    repeated = flow.conditions.repeat(given, count)
    if isinstance(repeated, Tensor):
        repeated = repeated.view(*p.batch_shape, count, *flow.conditions.value_shape)
        return flow.distribution(repeated)
    return flow.distribution().expand((count,))


def test_gradients_come_through_what_is_built(p: Any) -> None:
    weights = p.flow.blocks[0].position
    for built in (TransformedDistribution(p, [ExpTransform()]), Independent(p, len(p.batch_shape))):
        (gradient,) = torch.autograd.grad(built.rsample((2,)).sum(), weights)
        assert bool(gradient.isfinite().all()) and float(gradient.abs().max()) > 0


def test_what_has_no_formula_says_so(p: Any) -> None:
    for name in ("mean", "variance", "stddev"):
        with pytest.raises(NotImplementedError, match="no formula"):
            getattr(p, name)
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(torch.full(p.event_shape, math.nan, dtype=torch.float64))
