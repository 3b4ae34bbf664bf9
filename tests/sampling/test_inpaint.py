"""A region drawn given the rest: what is given stays, and what is drawn has the conditional density."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tarflow
from flow_cases import assert_close, build, every_flow, every_kind, images, labels
from tarflow.sampling.observed import futures
from tarflow.sampling.region import Region, _Solved

QUICK: dict[str, Any] = {"chains": 2, "steps": 4, "warmup": 4, "leapfrog": 2}


@every_flow
def test_what_is_given_stays_and_the_rest_changes(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 2), labels(flow, 2)
    mask = torch.zeros(flow.event.shape, dtype=torch.bool)
    mask.view(-1)[1::2] = True
    drawn = tarflow.inpaint(flow, x, mask, y, n=3, **QUICK)
    assert drawn.samples.shape == (3, *x.shape) and not drawn.exact
    assert torch.equal(drawn.samples[:, :, ~mask], x[:, ~mask].expand(3, -1, -1))
    assert not torch.isclose(drawn.samples[:, :, mask], x[:, mask]).any()
    assert bool(flow.event.support.check(drawn.samples).all())
    for figure in (drawn.acceptance, drawn.effective_sample_size, drawn.rhat):
        assert figure.shape == (2,)


def test_draws_have_the_moments_of_the_conditional_density() -> None:
    """Of numbers that lie on a line, by integrating p(x_region, x_rest) over a grid."""
    flow = build("vector", condition="none", transform="affine")
    x = 0.5 * images(flow, 2)
    mask = torch.tensor([False, True, False, False])
    drawn = tarflow.inpaint(flow, x, mask, n=400, steps=50, warmup=64, leapfrog=3)
    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    for row in range(2):
        many = x[row].expand(1201, -1).clone()
        many[:, 1] = grid
        with torch.no_grad():
            weight = flow.log_prob(many).softmax(0)
        mean = (weight * grid).sum()
        deviation = (weight * (grid - mean).square()).sum().sqrt()
        values, worth = drawn.samples[:, row, 1], float(drawn.effective_sample_size[row])
        assert worth > 60 and float(drawn.rhat[row]) < 1.1
        assert abs(float((values.mean() - mean) / deviation)) < 4 / worth**0.5
        assert abs(float(values.std() / deviation) - 1) < 4 / worth**0.5
    assert "effective sample size" in str(drawn)
    assert drawn.mixed and drawn.verdict.startswith("The chains have mixed (R-hat 1.0")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("causal", {}),
        ("conditional", {"order": "causal", "log_scale_bound": 0.6}),
        ("permuted", {"orders": ((2, 0, 3, 1),) * 2, "log_scale_bound": 0.6}),
        ("one_block", {"log_scale_bound": 0.6}),
    ],
)
def test_where_the_order_allows_it_is_exact(name: str, changes: dict[str, Any]) -> None:
    """The first tokens of the blocks' one order are given: the draws are those of `futures`, also of a permuted one."""
    flow = build(name, **changes)
    x, y = images(flow, 2), labels(flow, 2)
    order = flow.blocks[0].order
    tokens = torch.ones(1, flow.sequence.tokens, flow.sequence.dim)
    tokens[:, list(order.permutation[:2])] = 0
    mask = flow.event.join(tokens)[0].bool()
    drawn = tarflow.inpaint(flow, x, mask, y, n=3, seed=4)
    assert drawn.exact and str(drawn) == "3 exact draws" and drawn.effective_sample_size.tolist() == [3, 3]
    want = futures(flow, x.repeat_interleave(3, dim=0), 2, flow.conditions.repeat(y, 3), 4)
    assert_close(drawn.samples, want.unflatten(0, (2, 3)).transpose(0, 1), 1e-9)
    partly = mask.clone()
    partly.view(-1)[int(partly.flatten().nonzero()[0])] = False
    assert not tarflow.inpaint(flow, x, partly, y, **QUICK).exact
    assert not tarflow.inpaint(flow, x, ~mask, y, **QUICK).exact


def test_everything_may_be_drawn_where_nothing_is_given() -> None:
    flow = build("causal")
    whole = torch.ones(flow.event.shape, dtype=torch.bool)
    drawn = tarflow.inpaint(flow, images(flow, 2), whole, n=2, seed=3)
    assert drawn.exact
    assert_close(drawn.samples.transpose(0, 1).flatten(0, 1), tarflow.sample(flow, 4, seed=3), 1e-9)


def test_a_model_of_noisy_images_sees_the_rest_through_noise() -> None:
    """The rest comes back clean, and what is drawn is denoised; what the chains see of the rest is the same for all."""
    flow = build("bounded", torch.float32)
    x = images(flow, 2, dtype=torch.float32)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, :2] = True
    noisy = tarflow.inpaint(flow, x, mask, n=4, seed=1, **QUICK)
    seen: list[torch.Tensor] = []
    told = lambda _, events: seen.append(events)  # noqa: E731
    clean = tarflow.inpaint(flow, x, mask, n=4, seed=1, denoise=0.3, progress=told, **QUICK)
    kept = ~mask.expand(1, 4, 4)
    rest = seen[-1][:, kept].unflatten(0, (2, 2))
    assert torch.equal(rest[:, 0], rest[:, 1]) and not torch.allclose(rest[:, 0], x[:, kept], atol=0.1)
    assert torch.equal(clean.samples[:, :, kept], x[:, kept].expand(4, -1, -1))
    assert not torch.allclose(noisy.samples, clean.samples)


@every_kind
def test_coordinates_of_a_region_are_a_change_of_variables(name: str) -> None:
    """x comes back from v, log p(v) = log p(x) + log|det ∂x/∂v|, and its gradient is that of finite differences."""
    flow = build(name).requires_grad_(False)
    x, y = images(flow, 2), flow.check_condition(labels(flow, 2), 2)
    tokens = torch.zeros(1, flow.sequence.tokens, flow.sequence.dim)
    tokens[:, 1:], tokens[:, 0, 0] = 1, 1  # all tokens but the first, and a part of that
    mask = flow.event.join(tokens)[0].bool()
    place = Region(flow, x, mask, y)
    v = place.coordinates(x)
    assert v.shape == (2, int(mask.sum()))
    assert_close(place.events(v), x, 1e-9)
    other = (v + 0.1 * torch.randn_like(v)).requires_grad_()
    assert torch.equal(place.events(other)[:, ~mask], x[:, ~mask]) or flow.event.preprocessing is not None
    jacobian = torch.autograd.functional.jacobian(lambda v: _Solved.apply(v, place).flatten(1)[:, place.index], other)
    event = flow.event.to_tokens(place.events(other))[1]
    slopes = torch.as_tensor(event).sum(-1).expand(2) if isinstance(event, torch.Tensor) else torch.zeros(2)
    for k in range(2):
        density = flow.log_prob(place.events(other), y)[k] - slopes[k] + torch.linalg.slogdet(jacobian[k, :, k])[1]
        assert_close(place.log_density(other)[k], density, 1e-8)
    assert torch.autograd.gradcheck(place.log_density, (other,), atol=1e-5)


def test_a_drawing_ends_in_time_or_where_somebody_stops_it_and_says_what_it_is_worth() -> None:
    flow = build("bounded")
    x, mask = images(flow, 1), torch.eye(4, dtype=torch.bool)
    shares: list[float] = []
    told = lambda share, events: shares.append(share)  # noqa: E731
    drawn = tarflow.inpaint(flow, x, mask, n=8, chains=2, steps=10**6, warmup=10**6, seconds=0.2, progress=told)
    assert 4 < len(shares) < 10**4 and shares == sorted(shares) and shares[-1] == 1
    assert not drawn.mixed and "The chains have not mixed" in drawn.verdict and "More time helps" in drawn.verdict
    with pytest.raises(ValueError, match="n: expected at most chains·steps = 8, got 9"):
        tarflow.inpaint(flow, x, mask, n=9, chains=2, seconds=0.2)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tarflow.inpaint(flow, x, mask, chains=2, progress=stop)


def test_draws_are_a_function_of_the_seed_and_inputs_are_left_alone() -> None:
    flow = build("bounded_conditional")
    x, y = images(flow, 2), labels(flow, 2)
    before, mask = x.clone(), torch.eye(4, dtype=torch.bool)
    first, again, other = (tarflow.inpaint(flow, x, mask, y, seed=s, **QUICK).samples for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and torch.equal(x, before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": torch.zeros(4, 4)}, r"mask: expected a bool tensor \(1, 4, 4\)"),
        ({"mask": torch.zeros(4, 4, dtype=torch.bool)}, "got none that is True"),
        ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"got \(3, 4\)"),
        ({"n": 20}, "n: expected at most chains·steps = 8, got 20"),
        ({"denoise": -1.0}, "sigma"),
        ({"x": torch.zeros(2, 4, 4)}, "x: expected images"),
        ({"c": torch.tensor([0, 9])}, "expected 0 to 2"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], message: str) -> None:
    flow = build("bounded_conditional")
    given = {"x": images(flow, 2), "mask": torch.eye(4, dtype=torch.bool), "c": None, "n": 1} | QUICK | changes
    with pytest.raises(ValueError, match=message):
        tarflow.inpaint(flow, **given)
