"""A region drawn given the rest: what is given stays, and what is drawn has the conditional density."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tarflow
from flow_cases import assert_close, build, every_flow, images, labels
from tarflow.sampling.observed import futures

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
    """The rest comes back clean, each chain has noise of its own, and what is drawn is denoised."""
    flow = build("bounded", torch.float32)
    x = images(flow, 2, dtype=torch.float32)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, :2] = True
    noisy = tarflow.inpaint(flow, x, mask, n=4, seed=1, **QUICK)
    clean = tarflow.inpaint(flow, x, mask, n=4, seed=1, denoise=0.3, **QUICK)
    kept = ~mask.expand(1, 4, 4)
    assert torch.equal(clean.samples[:, :, kept], x[:, kept].expand(4, -1, -1))
    assert not torch.allclose(noisy.samples, clean.samples)


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
