"""Padding changes nothing: neither what lies under it, nor how much of it there is, for densities, samples and scores.

The reference knows of no padding: `slow_flow` is given the tokens that are there, at their places, and no others.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.autograd.functional import jacobian

import slow_flow
import tarflow
from flow_cases import (
    assert_close,
    build,
    images,
    labels,
    latents,
    masks,
    padded,
    row_of,
    sequence_of,
    unchanged,
    under,
)
from tarflow import Guidance
from tarflow.model.order import Padded, make_order
from tarflow.sampling import denoise as denoise_module

PADDED = padded()
SOLVERS = [
    tarflow.Sequential(),
    tarflow.Jacobi(tol=1e-12),
    tarflow.Jacobi(window=2, tol=1e-12),
    tarflow.Auto(tol=1e-12),
]


def test_there_are_cases_of_every_kind() -> None:
    flows = [sequence_of(name) for name in PADDED]
    assert any(f.rotary for f in flows) and any(f.condition != "none" for f in flows)
    assert any(f.support != "real" for f in flows) and any("random" in str(f.orders) for f in flows)
    assert {name.removesuffix("-by-number") for f in flows for name in f.transforms} >= {"affine", "additive", "spline"}


def test_a_padded_order_is_the_order_of_what_is_there() -> None:
    order, mask = make_order("random:3", 6), torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0]]).bool()
    padded, tokens = Padded(order, mask), torch.arange(6).expand(2, 6)
    walked = padded.forward(tokens)
    assert walked[0, :4].tolist() == [token for token in order.permutation if mask[0, token]]
    assert torch.equal(padded.inverse(walked), torch.where(mask, tokens, 0))
    table = torch.randn(6, 3)
    assert torch.equal(padded.rows(table, 1, 4), table[walked[:, 1:5]])


@pytest.mark.parametrize("name", PADDED)
def test_what_lies_under_the_padding_has_no_influence(name: str) -> None:
    flow = build(name)
    mask, x, y = masks(flow), images(flow, 5), labels(flow, 5)
    want, z = flow.log_prob(x, y, mask=mask), flow.encode(x, y, mask=mask)[0]
    assert not z[~mask].any() and want[4] == 0 and want[:4].all()
    for value in (0.0, -7.0, 1e30, math.inf, math.nan):
        other = under(mask, x, value).requires_grad_()
        with unchanged(mask, None if math.isnan(value) else other):
            got = flow.log_prob(other, y, mask=mask)
        assert torch.equal(got, want)
        assert torch.equal(flow.encode(other, y, mask=mask)[0], z)
        (score,) = torch.autograd.grad(got.sum(), other)
        assert bool(score.isfinite().all()) and not score[~mask].any()
        assert torch.equal(flow(other, y, mask=mask)[0], z)
    by_token = flow.log_prob_by_token(x, y, mask=mask)
    assert_close(by_token.sum(dim=1), want)
    assert not by_token[~mask].any()
    assert_close(flow.log_prob(x, y, mask=torch.ones_like(mask)), flow.log_prob(x, y))


@pytest.mark.parametrize("name", PADDED)
def test_a_row_is_what_it_is_alone(name: str) -> None:
    flow = build(name)
    mask, x, y = masks(flow), images(flow, 5), labels(flow, 5)
    want = flow.log_prob(x, y, mask=mask)
    for i in range(5):
        row = slice(i, i + 1)
        assert_close(flow.log_prob(x[row], row_of(y, i), mask=mask[row]), want[row])


@pytest.mark.parametrize("name", PADDED)
def test_decode_is_the_formula_of_the_paper_on_the_tokens_that_are_there(name: str) -> None:
    flow = build(name)
    mask, z, y = masks(flow)[:4], latents(flow, 4), labels(flow, 4)
    x = flow.decode(under(mask, z, 5.0), y, mask=mask)
    assert not x[~mask].any()
    for i in range(4):
        there = mask[i].nonzero().flatten().tolist()
        tokens = slow_flow.decode(flow, z[i : i + 1], row_of(y, i), there=there)
        got = flow.event.to_tokens(x[i : i + 1], mask[i : i + 1])[0]
        assert_close(got[:, there], tokens)


@pytest.mark.parametrize("name", PADDED)
def test_encode_and_decode_are_inverses_and_ladj_is_the_jacobian_of_what_is_there(name: str) -> None:
    flow = build(name)
    mask, x, y = masks(flow), images(flow, 5), labels(flow, 5)
    z, ladj = flow.encode(x, y, mask=mask)
    assert_close(flow.decode(z, y, mask=mask), under(mask, x, 0.0))
    for i in range(4):
        row_y, row = row_of(y, i), mask[i : i + 1]
        matrix = jacobian(lambda x, row_y=row_y, row=row: flow.encode(x, row_y, mask=row)[0], x[i : i + 1])
        dim = flow.sequence.dim * int(row.sum())
        inside = row.view(-1).repeat_interleave(flow.sequence.dim)
        square = matrix.view(len(inside), -1)[inside][:, inside]
        assert square.shape == (dim, dim)
        assert_close(ladj[i], torch.linalg.slogdet(square).logabsdet)


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_every_solver_is_the_reference(name: str, solver: tarflow.Sequential) -> None:
    flow = build(name)
    mask, y, noise = masks(flow), labels(flow, 5), latents(flow, 5)
    want = flow.decode(flow.base.sample(noise), y, mask=mask)
    got = tarflow.sample(flow, 5, y, noise=under(mask, noise, 3.0), solver=solver, mask=mask)
    assert_close(got, want, 1e-8)
    assert not got[~mask].any()


@pytest.mark.parametrize("name", PADDED)
@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_guided_samples_know_of_no_padding(name: str, schedule: Any) -> None:
    """Neither in C, in float32, nor in operations: a row alone, whose other tokens come at the end of the sequence."""
    flow = build(name)
    mask, y, noise = masks(flow), labels(flow, 5), latents(flow, 5)
    guidance = Guidance(1.0, schedule=schedule, temperature=0.5)
    got = tarflow.sample(flow, 5, y, guidance, noise=noise, solver="sequential", mask=mask)
    narrow = tarflow.sample(build(name, torch.float32), 5, y, guidance, noise=noise, solver="sequential", mask=mask)
    assert_close(narrow.double(), got, 1e-3)
    for i in range(4):
        there = mask[i].nonzero().flatten().tolist()
        row_y, options = row_of(y, i), {"temperature": 0.5, "schedule": schedule}
        tokens = slow_flow.decode(flow, noise[i : i + 1], row_y, there=there, scale=1.0, **options)
        assert_close(flow.event.to_tokens(got[i : i + 1], mask[i : i + 1])[0][:, there], tokens, 1e-8)


@pytest.mark.parametrize("name", PADDED)
def test_samples_come_with_their_density_and_are_the_same_at_any_batch_size(name: str) -> None:
    flow = build(name)
    mask, y = masks(flow), labels(flow, 5)
    x, log_q = flow.sample_and_log_prob(5, y, solver="sequential", mask=mask)
    assert_close(log_q, flow.log_prob(x, y, mask=mask), 1e-8)
    assert_close(tarflow.sample(flow, 5, y, solver="sequential", mask=mask, batch_size=2), x)


@pytest.mark.parametrize("name", PADDED)
def test_the_score_is_that_of_what_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build(name).requires_grad_(False)
    mask, x, y = masks(flow), images(flow, 5), labels(flow, 5)
    inside = under(mask, x, math.nan).requires_grad_()
    (score,) = torch.autograd.grad(flow.log_prob(inside, y, mask=mask).sum(), inside)
    want = under(mask, x + 0.01 * score, 0.0)
    assert_close(tarflow.denoise(flow, inside, 0.1, y, mask=mask), want)
    monkeypatch.setattr(denoise_module, "GRAPH_BYTES", denoise_module.graph_bytes(flow) - 1)
    assert_close(tarflow.denoise(flow, inside, 0.1, y, mask=mask), want)


def test_every_parameter_gets_a_gradient_from_what_is_there_alone() -> None:
    flow = build("permuted_start")
    mask = torch.tensor([[True, True, False, True]]).expand(12, -1)
    flow.log_prob(images(flow, 12), labels(flow, 12), mask=mask).sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None
        if name.endswith("position"):
            assert not parameter.grad[2].any(), "a place without a token"
            assert int((parameter.grad.abs().amax(dim=1) > 1e-8).sum()) == 2, "all that are there but the last"


def test_only_tokens_that_are_there_are_standardised_by() -> None:
    flow = build("supports")
    mask, x = masks(flow), images(flow, 5)
    flow.event.fit(under(mask, x, math.nan), mask=mask)
    tokens = flow.event.to_tokens(x)[0][mask]
    assert_close(tokens.mean(dim=0), torch.zeros(3, dtype=torch.float64), 1e-6)


BAD: dict[str, tuple[str, Any, str]] = {
    "without a start token": ("permuted", torch.ones(2, 4, dtype=torch.bool), "none, as without start_token the first"),
    "images": ("start_token", torch.ones(2, 4, dtype=torch.bool), "none, of images"),
    "vectors": ("vector", torch.ones(2, 4, dtype=torch.bool), "none, of vectors"),
    "numbers": ("permuted_start", torch.ones(2, 4), r"\(2, 4\) booleans, .*, got \(2, 4\) of torch.float32"),
    "rows": ("permuted_start", torch.ones(3, 4, dtype=torch.bool), r"\(2, 4\) booleans, .*, got \(3, 4\)"),
    "a list": ("permuted_start", [[True] * 4] * 2, r"a tensor of \(2, 4\) booleans"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mask_that_does_not_fit_is_named(case: str) -> None:
    name, mask, message = BAD[case]
    flow = build(name)
    x, z = images(flow, 2), latents(flow, 2)
    for call in (
        lambda: flow.log_prob(x, mask=mask),
        lambda: flow.encode(x, mask=mask),
        lambda: flow.decode(z, mask=mask),
        lambda: flow.log_prob_by_token(x, mask=mask),
        lambda: tarflow.sample(flow, 2, mask=mask),
        lambda: tarflow.denoise(flow, x, 0.1, mask=mask),
    ):
        with pytest.raises(ValueError, match=f"mask: expected {message}"):
            call()
