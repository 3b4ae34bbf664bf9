"""Padding changes nothing, in whatever draws, edits or weighs: each is held to a flow without padding, or to autograd.

The laws of the density and of plain samples are those of `tests/model/test_padding.py`, over the same cases.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.distributions import Independent

import tarflow
from flow_cases import (
    assert_close,
    build,
    images,
    in_one_order,
    labels,
    latents,
    masks,
    padded,
    row_of,
    unchanged,
    under,
)
from tarflow.sampling.decode import draw_noise
from tarflow.sampling.implicit import decode_with_gradients
from tarflow.sampling.objectives import rsample_and_log_prob

every_padded = pytest.mark.parametrize("name", padded())
ONE_ORDER = ["permuted_start", "supports", "given_tokens_rotary", "given_all_from_a_start"]
QUICK: dict[str, Any] = {"chains": 2, "steps": 4, "warmup": 4, "leapfrog": 2}


# --- gradients, and the flow in its other direction -----------------------------------------------------------------


@every_padded
@pytest.mark.parametrize("solver", ["sequential", "jacobi"])
def test_gradients_of_draws_are_those_of_the_reference_decode(name: str, solver: str) -> None:
    flow = build(name)
    mask, y, direction = masks(flow), labels(flow, 5), images(flow, 5, seed=4)
    z = under(mask, 0.5 * latents(flow, 5), 9.0).requires_grad_()
    inputs = [z, *flow.parameters()]
    x = flow.event.from_tokens(decode_with_gradients(flow, z, y, solver, mask), mask)
    want_x = flow.decode(z, y, mask=mask)
    assert_close(x.detach(), want_x.detach(), 1e-9)
    got, want = (torch.autograd.grad((value * direction).sum(), inputs, allow_unused=True) for value in (x, want_x))
    assert not got[0][~mask].any()
    for mine, reference in zip(got, want, strict=True):
        zero = torch.zeros(())
        reference = zero if reference is None else reference
        mine = torch.zeros_like(reference) if mine is None else mine
        assert_close(mine, reference, 1e-8 * float(1 + reference.abs().amax()))


@every_padded
def test_the_inverse_flow_has_the_density_of_what_is_there(name: str) -> None:
    flow = build(name)
    mask, y, q = masks(flow), labels(flow, 5), flow.inverse()
    x, log_q = q.rsample_and_log_prob(5, y, seed=2, mask=mask)
    assert not x[~mask].any()
    assert_close(q.log_prob(under(mask, x.detach(), math.nan), y, mask=mask).detach(), log_q.detach(), 1e-8)
    assert_close(q.sample(5, y, seed=2, mask=mask), x.detach())
    u, dim = latents(flow, 5), flow.sequence.dim
    for i in range(4):
        row, row_y = mask[i : i + 1], row_of(y, i)
        inside = row.view(-1).repeat_interleave(dim)
        matrix = jacobian(lambda u, row=row, row_y=row_y: q(u, row_y, row)[0].flatten(), u[i : i + 1])
        square = matrix.view(len(inside), -1)[inside][:, inside]
        want = flow.base.log_prob(u[i : i + 1])[row].sum() - torch.linalg.slogdet(square)[1]
        assert_close(q(u[i : i + 1], row_y, row)[1], want.unsqueeze(0), 1e-8)


@every_padded
def test_reverse_kl_and_weights_are_over_what_is_there(name: str) -> None:
    """Against the flow itself the divergence is 0 and all weights are equal; a mask that is forgotten would show."""
    flow, frozen = build(name), build(name)
    mask, y = masks(flow), labels(flow, 5)
    x, log_q = rsample_and_log_prob(flow, 5, y, mask=mask)
    assert_close(log_q.detach(), flow.log_prob(x.detach(), y, mask=mask).detach(), 1e-8)
    loss = tarflow.reverse_kl(flow, lambda x: frozen.log_prob(x, y, mask=mask), 5, y, mask=mask)
    assert abs(float(loss.detach())) < 1e-8
    drawn = tarflow.importance(flow, lambda x: frozen.log_prob(x, y, mask=mask) + 2, 5, y, mask=mask)
    assert_close(drawn.log_weight.detach(), torch.full((5,), 2.0, dtype=torch.float64), 1e-8)
    inverse = flow.inverse()
    loss = tarflow.mixed_kl(inverse, lambda x: inverse.log_prob(x, y, mask=mask), x.detach(), 5, 0.25, y, mask=mask)
    assert float(loss.detach()) == pytest.approx(
        -0.25 * float(inverse.log_prob(x, y, mask=mask).mean().detach()), abs=1e-7
    )
    loss.backward()


# --- as a distribution ------------------------------------------------------------------------------------------------


@every_padded
def test_a_distribution_of_what_is_there(name: str) -> None:
    flow = build(name)
    mask, x, y = masks(flow), images(flow, 5), labels(flow, 5)
    p = flow.distribution(y, mask=mask)
    assert p.batch_shape == (5,) and p.event_shape == x.shape[1:]
    want = flow.log_prob(x, y, mask=mask)
    assert_close(p.log_prob(under(mask, x, math.nan)), want)
    assert bool(p.support.check(under(mask, x, math.inf)).all())
    torch.manual_seed(3)
    drawn, log_p = p.sample_and_log_prob((2,))
    assert not drawn[:, ~mask].any() and drawn.shape == (2, *x.shape)
    assert_close(p.log_prob(drawn).detach(), log_p, 1e-8)
    torch.manual_seed(3)
    differentiable = p.rsample((2,))
    assert differentiable.requires_grad
    assert_close(differentiable.detach(), drawn, 1e-8)
    wide = p.expand((3, 5))
    assert_close(wide.log_prob(x), want.expand(3, 5))
    assert wide.sample().shape == (3, *x.shape)
    assert_close(Independent(p, 1).log_prob(x), want.sum())
    assert p.entropy(2).mean.shape == (5,)
    assert_close(p.kl(p, 2).mean, torch.zeros(5, dtype=torch.float64))


def test_masks_are_broadcast_with_the_condition() -> None:
    flow = build("permuted_start")
    mask, x = masks(flow), images(flow, 5)
    one = flow.distribution(2, mask=mask)
    assert one.batch_shape == (5,)
    assert_close(one.log_prob(x), flow.log_prob(x, torch.full((5,), 2), mask=mask))
    table = flow.distribution(torch.arange(3).view(3, 1), mask=mask)
    assert table.batch_shape == (3, 5)
    assert_close(table.log_prob(x)[1], flow.log_prob(x, torch.full((5,), 1), mask=mask))
    none = flow.distribution(mask=mask[2])
    assert none.batch_shape == () and none.log_prob(x).shape == (5,)
    assert_close(none.log_prob(x), flow.log_prob(x, mask=mask[2].expand(5, -1)))
    with pytest.raises(ValueError, match=r"mask: leading shape \(5,\) does not broadcast with \(3,\)"):
        flow.distribution(torch.arange(3), mask=mask)


# --- what is observed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_ORDER)
def test_the_future_of_a_padded_past_is_that_of_the_past_that_is_there(name: str) -> None:
    """The joint log-density less that of the future is the same whatever the future: that of the past."""
    flow = in_one_order(name)
    mask, y, x = masks(flow), labels(flow, 5), images(flow, 5)
    past, future = x[:, :2], x[:, 2:]
    p = flow.condition(under(mask[:, :2], past, math.nan), y, mask)
    futures = torch.stack([future, images(flow, 5, seed=8)[:, 2:]])
    joint = torch.stack([flow.log_prob(torch.cat([past, each], dim=1), y, mask=mask) for each in futures])
    conditional = p.log_prob(futures)
    assert_close((joint - conditional)[0], (joint - conditional)[1], 1e-9)
    assert_close(p.log_prob(torch.where(mask[:, 2:].unsqueeze(2), futures, math.nan)), conditional)
    assert not conditional[:, 4].any() and bool(conditional[:, 0].all())


@pytest.mark.parametrize("name", ONE_ORDER)
@pytest.mark.parametrize("solver", ["sequential", "jacobi"])
def test_futures_are_drawn_after_the_past_that_is_there(name: str, solver: str) -> None:
    """What was drawn is made of the noise of its tokens, and of the latents of its past."""
    from tarflow.sampling.observed import futures

    flow = in_one_order(name)
    mask, y, x = masks(flow), labels(flow, 5), images(flow, 5)
    drawn = futures(flow, under(mask, x, math.nan), 2, y, seed=5, solver=solver, mask=mask)
    assert not drawn[~mask].any()
    z, _ = flow.encode(drawn, y, mask=mask)
    assert_close(z[:, :2], flow.encode(x, y, mask=mask)[0][:, :2], 1e-7)
    assert_close(z[:, 2:], under(mask[:, 2:], draw_noise(flow, torch.arange(5), 5)[:, 2:], 0.0), 1e-7)
    p = flow.condition(x[:, :2], y, mask)
    sampled = p.sample(3)
    assert sampled.shape == (3, 5, *x[:, 2:].shape[1:]) and not sampled[:, ~mask[:, 2:]].any()
    assert flow.condition(x[:, :2], y, mask[1]).sample().shape == x[:, 2:].shape


@pytest.mark.parametrize(("name", "exact"), [*((name, True) for name in ONE_ORDER), *((n, False) for n in padded())])
def test_regions_of_what_is_there_are_drawn(name: str, exact: bool) -> None:
    flow = in_one_order(name) if exact else build(name)
    mask, y, x = masks(flow), labels(flow, 5), images(flow, 5)
    region = torch.zeros(flow.event.shape, dtype=torch.bool)
    region[2:] = True
    if not exact:
        region[1, 0], region[2, 0] = True, False
    options = {"n": 3, "seed": 4, "there": mask, **QUICK}
    drawn = tarflow.inpaint(flow, under(mask, x, math.nan), region, y, **options)
    assert drawn.exact == exact and drawn.samples.shape == (3, *x.shape)
    changed = region & mask.unsqueeze(2)
    for sample in drawn.samples:
        assert torch.equal(sample[~changed], under(mask, x, 0.0)[~changed])
        assert not torch.isclose(sample[changed], x[changed]).any()
    assert drawn.effective_sample_size[4] == 3 and drawn.rhat[4] == 1, "there is nothing to draw"
    assert bool(drawn.effective_sample_size.isfinite().all())
    again = tarflow.inpaint(flow, x, region, y, **options)
    assert torch.equal(again.samples, drawn.samples)


def test_a_padded_region_has_the_moments_of_the_conditional_density() -> None:
    """Of the one number of a short sequence that is not given, beside a row in which it is padding."""
    flow = build("permuted_start", log_scale_bound=0.6, condition="none")
    x = 0.5 * images(flow, 2)
    mask = torch.tensor([[True, True, False, True], [True, False, True, True]])
    region = torch.zeros(4, 3, dtype=torch.bool)
    region[1, 1], region[2, 0] = True, True
    drawn = tarflow.inpaint(flow, x, region, n=120, steps=25, warmup=40, leapfrog=3, there=mask)
    grid = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    for row, place in ((0, (1, 1)), (1, (2, 0))):
        many = x[row].expand(1201, -1, -1).clone()
        many[:, place[0], place[1]] = grid
        with torch.no_grad():
            weight = flow.log_prob(many, mask=mask[row].expand(1201, -1)).softmax(0)
        mean = (weight * grid).sum()
        deviation = (weight * (grid - mean).square()).sum().sqrt()
        values, worth = drawn.samples[:, row, place[0], place[1]], float(drawn.effective_sample_size[row])
        assert worth > 40 and float(drawn.rhat[row]) < 1.1
        assert abs(float((values.mean() - mean) / deviation)) < 4 / worth**0.5
        assert abs(float(values.std() / deviation) - 1) < 4 / worth**0.5


# --- editing ----------------------------------------------------------------------------------------------------------


@every_padded
def test_edits_know_of_no_padding(name: str) -> None:
    flow = build(name)
    mask, y, x = masks(flow), labels(flow, 5), images(flow, 5)
    hidden = under(mask, x, math.nan)
    with unchanged(mask):
        again, error = tarflow.reconstruct(flow, hidden, y, mask=mask)
    assert_close(again, under(mask, x, 0.0), 1e-8)
    assert float(error.amax()) < 1e-8

    stages = tarflow.trace(flow, 5, y, seed=7, mask=mask, denoise=0.1)
    assert len(stages) == len(flow.blocks) + 2 and not any(stage[~mask].any() for stage in stages)
    assert_close(stages[-2], tarflow.sample(flow, 5, y, seed=7, mask=mask, solver="sequential"))

    row, ends = mask[2], [row_of(y, i) for i in (2, 0)]
    given = [None if end is None else flow.conditions.rows(end, torch.tensor(0)) for end in ends]
    walk = tarflow.interpolate(flow, hidden[2], x[0], 4, *given, mask=row)
    assert not walk[:, ~row].any()
    for at, end in ((0, x[2]), (3, x[0])):
        assert_close(walk[at], under(row.unsqueeze(0), end.unsqueeze(0), 0.0)[0], 1e-8)

    kept = tarflow.resample(flow, hidden, 1, y, mask=mask, seed=3)
    assert not kept[~mask].any()
    walked = flow.blocks[0].padded(mask).order
    first = walked.forward(under(mask, x, 0.0))[:4, 0]
    assert_close(walked.forward(kept)[:4, 0], first, 1e-8)
    everything = tarflow.resample(flow, hidden, flow.sequence.tokens, y, mask=mask)
    assert_close(everything, under(mask, x, 0.0), 1e-8)
    nothing = tarflow.resample(flow, hidden, 0, y, mask=mask, seed=7)
    assert_close(nothing, stages[-2], 1e-8)


# --- what does not fit ------------------------------------------------------------------------------------------------


def calls(flow: Any, mask: Any) -> dict[str, Any]:
    x, z, part = images(flow, 2), latents(flow, 2), {"there": mask, **QUICK}
    region = torch.ones(flow.event.shape, dtype=torch.bool)
    one = mask[0] if isinstance(mask, Tensor) else mask
    return {
        "inverse": lambda: flow.inverse()(z, mask=mask),
        "inverse log_prob": lambda: flow.inverse().log_prob(x, mask=mask),
        "reverse_kl": lambda: tarflow.reverse_kl(flow, lambda x: x.sum((1, 2)), 2, mask=mask),
        "importance": lambda: tarflow.importance(flow, lambda x: x.sum((1, 2)), 2, mask=mask),
        "distribution": lambda: flow.distribution(mask=mask),
        "inpaint": lambda: tarflow.inpaint(flow, x, region, **part),
        "trace": lambda: tarflow.trace(flow, 2, mask=mask),
        "reconstruct": lambda: tarflow.reconstruct(flow, x, mask=mask),
        "resample": lambda: tarflow.resample(flow, x, 1, mask=mask),
        "interpolate": lambda: tarflow.interpolate(flow, x[0], x[1], mask=one),
    }


@pytest.mark.parametrize("call", calls(build("permuted"), None))
@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("permuted", torch.ones(2, 4, dtype=torch.bool), "none, as without start_token the first token"),
        ("vector", torch.ones(2, 4, dtype=torch.bool), "none, of vectors"),
        ("permuted_start", torch.ones(2, 4), "booleans"),
        ("permuted_start", [[True] * 4] * 2, "a tensor"),
        ("permuted_start", torch.ones(2, 3, dtype=torch.bool), r"booleans, .*, got \(\d, 3\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(call: str, name: str, mask: Any, message: str) -> None:
    flow = build(name)
    with pytest.raises(ValueError, match=f"mask: expected .*{message}"):
        calls(flow, mask)[call]()


def test_a_mask_of_observed_sequences_that_does_not_fit_is_named() -> None:
    flow = in_one_order("permuted_start")
    past = images(flow, 3)[:, :2]
    for mask, message in (
        (torch.ones(2, 4, dtype=torch.bool), r"\(3, 4\) booleans"),
        (torch.ones(3, 2, dtype=torch.bool), r"\(3, 4\) booleans"),
        (torch.ones(3, 4), "booleans"),
        ([True], "a tensor"),
    ):
        with pytest.raises(ValueError, match=f"mask: expected .*{message}"):
            flow.condition(past, mask=mask)
    images_flow = build("causal")
    with pytest.raises(ValueError, match="mask: expected none, of images"):
        images_flow.condition(torch.zeros(1, 2, 4), mask=torch.ones(4, dtype=torch.bool))
