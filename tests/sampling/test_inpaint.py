"""A region drawn given the rest: what is given stays, and what is drawn has the conditional density."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.autograd.functional import jacobian

import tarflow
from flow_cases import assert_close, build, every_kind, images, labels
from tarflow.sampling.observed import futures
from tarflow.sampling.region import Region

QUICK: dict[str, Any] = {"chains": 2, "steps": 4, "warmup": 4, "leapfrog": 2}


@every_kind
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
    assert drawn.mixed and drawn.verdict.startswith("The chains have mixed (R-hat ")


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
@pytest.mark.parametrize(("behind", "warped"), [(True, True), (False, True), (False, False)])
def test_coordinates_of_a_region_are_a_change_of_variables(name: str, behind: bool, warped: bool) -> None:
    """x comes back from v, log p(v) = log p(x) + log|det ∂x/∂v|, and its gradient is that of finite differences.

    Of every second number, so that tokens are drawn in part and given ones see drawn ones; and of all but the first.
    """
    flow = build(name).requires_grad_(False)
    x, y = images(flow, 2), flow.check_condition(labels(flow, 2), 2)
    order = flow.blocks[0].order
    tokens = torch.zeros(1, flow.sequence.tokens * flow.sequence.dim)
    tokens[:, 1 :: 2 if behind else 1] = 1
    mask = flow.event.join(order.inverse(tokens.view(1, flow.sequence.tokens, flow.sequence.dim)))[0].bool()
    place = Region(flow, x, mask, y, warped=warped)
    assert place.behind == behind
    v = place.coordinates(x)
    assert v.shape == (2, int(mask.sum()))
    assert_close(place.events(v), x, 1e-8)
    other = (v + 0.1 * torch.randn_like(v)).requires_grad_()
    assert torch.equal(place.events(other)[:, ~mask], x[:, ~mask]) or flow.event.preprocessing is not None
    densities = []
    for at in (v, other.detach()):
        events = place.events(at)
        inverse = jacobian(lambda t: flow.blocks[0].encode(t, y)[0].flatten(1), flow.event.to_tokens(events)[0])
        drawn = inverse.flatten(3)[:, place.index][..., place.index]  # ∂v/∂x of each row's numbers by each row's
        volume = torch.stack([torch.linalg.slogdet(drawn[k, :, k])[1] for k in range(2)]) if warped else 0.0
        units = torch.as_tensor(flow.event.to_tokens(events)[1]).expand(2, flow.sequence.tokens).sum(dim=1)
        densities.append(flow.log_prob(events, y) - units - volume)
    change = place.log_density(other) - place.log_density(v)  # which leave out a constant of each row
    assert_close(change, densities[1] - densities[0], 1e-8)
    assert torch.autograd.gradcheck(place.log_density, (other,), atol=1e-5, fast_mode=True)


def test_draws_are_those_of_the_conditional_gaussian() -> None:
    """Blocks that predict constants, with mixing: one Gaussian, of which some numbers of each token are given."""
    flow = build("mixed", condition="none", num_classes=0).requires_grad_(False)
    for block in flow.blocks:
        block.proj_out.weight.zero_()
    x, mask = images(flow, 1), torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0]]).bool()
    slope = jacobian(lambda x: flow.encode(x)[0].flatten(), torch.zeros_like(x)).flatten(1)
    mean = -torch.linalg.solve(slope, flow.encode(torch.zeros_like(x))[0].flatten())
    precision, free = slope.T @ slope, mask.flatten()
    covariance = torch.linalg.inv(precision[free][:, free])
    want = mean[free] - covariance @ precision[free][:, ~free] @ (x.flatten() - mean)[~free]
    drawn = tarflow.inpaint(flow, x, mask, n=1200, chains=12, steps=100, warmup=60)
    values, worth = drawn.samples[:, 0].flatten(1)[:, free], float(drawn.effective_sample_size)
    root = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(root, (values - want).T, upper=False)
    assert drawn.mixed and worth > 400
    assert float(whitened.mean(dim=1).abs().amax()) < 4.5 / worth**0.5
    assert float((whitened.cov() - torch.eye(len(want))).abs().amax()) < 7 / worth**0.5


def test_a_future_has_the_density_that_is_known_for_it() -> None:
    """Where all blocks walk forwards log p(v) is that of `condition`, but for a constant."""
    flow = build("image_given_all").requires_grad_(False)
    x, y = images(flow, 3), flow.check_condition(labels(flow, 3), 3)
    mask = torch.zeros(flow.event.shape, dtype=torch.bool)
    mask[:, 2:] = True
    place = Region(flow, x, mask, y)
    assert not place.behind
    densities, volumes = [], []
    for shift in (0.0, 0.3):
        v = place.coordinates(x) + shift
        events = place.events(v)
        densities.append(place.log_density(v))
        ladj = flow.blocks[0].encode(place.solve(v), y)[1].sum(dim=1)
        volumes.append(flow.condition(x[:, :, :2], y).log_prob(events[:, :, 2:]) - ladj)
    assert_close(densities[1] - densities[0], volumes[1] - volumes[0], 1e-9)


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
