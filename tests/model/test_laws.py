"""The laws of a normalizing flow, for every flow of the table, in float64 and with randomised output layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.autograd.functional import jacobian
from torch.distributions import Independent, Normal

import slow_flow
from flow_cases import assert_close, build, every_flow, images, labels, latents, names, row_of, sequence_of, unchanged
from tarflow import SequenceFlow
from tarflow.model.context import Context
from tarflow.model.transform import Affine, make_transform

BATCH = 5


@pytest.mark.parametrize("name", names(sequences=True))
def test_the_flows_of_the_table_are_not_trivial(name: str) -> None:
    """Else every law below would be true for free."""
    flow = build(name)
    x, y = images(flow, 50), labels(flow, 50)
    z, ladj = flow.encode(x, y)
    patches, _ = flow.event.to_tokens(x)
    dim = flow.sequence.dim
    assert (z - patches).square().mean().sqrt() > 0.1
    for name, block in zip(flow.sequence.transforms, flow.blocks, strict=True):
        params = block.conditioner(block.enter(patches)[:, :-1], block.context(y))[:, flow.sequence.start_token :]
        kinds = 0 if name.startswith("additive") else 1  # what a spline has, and what lies before a number, come behind
        log_scale, shift, _ = params.split([kinds * dim, dim, params.shape[2] - (kinds + 1) * dim], dim=-1)
        if log_scale.shape[1]:
            assert shift.std(dim=0).min() > 0.05, "shifts do not depend on what was before"
        if log_scale.numel():
            assert log_scale.std(dim=0).min() > 0.05, "log-scales do not depend on what was before"
            assert 0.2 < log_scale.square().mean().sqrt() < 1.5
    if "affine" in flow.sequence.transforms:
        assert ladj.std() > 0.1
    if flow.sequence.log_scale_bound is not None and log_scale.numel():
        assert log_scale.abs().max() > flow.sequence.log_scale_bound, "the bound does not bite"


@every_flow
def test_decode_inverts_encode_and_encode_inverts_decode(name: str) -> None:
    flow = build(name)
    x, z, y = images(flow, BATCH), latents(flow, BATCH), labels(flow, BATCH)
    with unchanged(x, z, y):
        assert_close(flow.decode(flow.encode(x, y)[0], y), x)
        assert_close(flow.encode(flow.decode(z, y), y)[0], z)


@every_flow
def test_decode_is_the_formula_of_the_paper(name: str) -> None:
    flow = build(name)
    z, y = latents(flow, BATCH), labels(flow, BATCH)
    assert_close(flow.event.to_tokens(flow.decode(z, y))[0], slow_flow.decode(flow, z, y))


@every_flow
def test_ladj_is_the_log_determinant_of_the_jacobian(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 3), labels(flow, 3)
    _, ladj = flow.encode(x, y)
    assert ladj.shape == (3,)
    for i in range(3):
        row_y = row_of(y, i)
        matrix = jacobian(lambda row, row_y=row_y: flow.encode(row, row_y)[0], x[i : i + 1])
        assert_close(ladj[i], torch.linalg.slogdet(matrix.view(flow.sequence.tokens * flow.sequence.dim, -1)).logabsdet)


@every_flow
def test_jacobian_of_a_block_is_triangular_in_its_own_order(name: str) -> None:
    """z_i depends on every x_j with j ≤ i and on none after, in the order of the config; z_0 = x_0 or has a start."""
    flow = build(name)
    length, dim = flow.sequence.tokens, flow.sequence.dim
    y = labels(flow, 1)
    for index, block in enumerate(flow.blocks):
        x = latents(flow, 1, seed=index)
        with unchanged(x, y):
            block.encode(x, y)
        matrix = jacobian(lambda x, block=block: block.encode(x, y)[0], x).view(length, dim, length, dim)
        order = slow_flow.permutation(flow.sequence, index)
        matrix = matrix[order][:, :, order]
        if not flow.sequence.start_token:
            first = torch.eye(dim, dtype=torch.float64)
            assert torch.equal(matrix[0, :, 0], first if block.mixing is None else block.mixing(first[None])[0].mT)
        for i in range(length):
            diagonal = matrix[i, :, i]
            ordered = flow.sequence.transforms[index].endswith(("-by-number", "-mixed"))
            expected = diagonal.tril() if ordered else torch.diag(diagonal.diag())
            assert torch.equal(diagonal, expected), "entries of one patch are mixed"
            if ordered and (i or flow.sequence.start_token):
                assert (diagonal.diagonal(-1) != 0).all(), "a number does not see the one before it"
            assert (diagonal.diag() > 0).all()
            for j in range(length):
                if j > i:
                    assert (matrix[i, :, j] == 0).all(), f"patch {i} of block {index} sees patch {j}"
                elif j < i:
                    assert (matrix[i, :, j] != 0).any(), f"patch {i} of block {index} does not see patch {j}"


@every_flow
def test_log_prob_is_the_base_density_plus_ladj(name: str) -> None:
    flow = build(name)
    x, y = images(flow, BATCH), labels(flow, BATCH)
    with unchanged(x, y):
        log_prob = flow.log_prob(x, y)
    z, ladj = flow.encode(x, y)
    variance = torch.ones_like(z[0]) if not flow.base.follows else flow.base.variance
    base = Independent(Normal(torch.zeros_like(variance), variance.sqrt()), 2)
    assert_close(log_prob, base.log_prob(z) + ladj)
    assert_close(flow.base.log_prob(z).sum(dim=1), base.log_prob(z))
    for i in range(BATCH):
        assert_close(flow.log_prob(x[i : i + 1], row_of(y, i)), log_prob[i : i + 1])


@pytest.mark.parametrize(
    ("name", "label"),
    [("bounded_conditional", 1), ("bounded_conditional", None), ("conditional", 0), ("additive", None)],
)
def test_the_density_integrates_to_one(name: str, label: int | None) -> None:
    flow = build(name, image_size=(1, 2), patch_size=1)
    if flow.sequence.log_scale_bound is None:  # without a bound the tails are too long for a grid
        for block in flow.blocks:
            block.proj_out.weight.data *= 0.3
    # x = sinh(t), because the tails are heavy: a log-scale grows with what it is conditioned on. The trapezoid rule is
    # exact to rounding for a function that is smooth and gone at the edges.
    reach, steps = 6, 240
    axis = torch.linspace(-reach, reach, steps + 1, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    x = grid.sinh().view(-1, 1, 1, 2)
    y = None if label is None else torch.full((len(x),), label)
    with torch.no_grad():
        density = flow.log_prob(x, y).exp() * grid.cosh().prod(dim=1)
    assert float(density.sum() * (2 * reach / steps) ** 2) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", names(sequences=True, long=True))
def test_every_parameter_gets_a_gradient(name: str) -> None:
    flow = build(name)
    flow.log_prob(images(flow, 12), labels(flow, 12)).sum().backward()
    for parameter_name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, parameter_name
        if parameter_name.endswith("embedding.classes"):
            assert (parameter.grad.abs().amax(dim=1) > 1e-8).all(), "a class gets no gradient"
        if parameter_name.endswith("position"):
            assert int((parameter.grad.abs().amax(dim=1) > 1e-8).sum()) == flow.sequence.tokens - 1


@pytest.mark.parametrize("name", ["bounded_conditional", "two_tokens", "additive_conditional"])
def test_gradients_flow_through_encode_decode_and_log_prob(name: str) -> None:
    flow = build(name).requires_grad_(False)
    y = labels(flow, 1)
    x, z = images(flow, 1).requires_grad_(), latents(flow, 1).requires_grad_()
    assert gradcheck(lambda x: flow.encode(x, y), x, fast_mode=True)
    assert gradcheck(lambda x: flow.log_prob(x, y), x, fast_mode=True)
    assert gradcheck(lambda z: flow.decode(z, y), z, fast_mode=True)
    assert gradcheck(lambda x: flow.decode(flow.encode(x, y)[0] * 1.5, y), x, fast_mode=True)


def test_gradients_flow_to_the_classes_and_through_the_cache_less_conditioner() -> None:
    flow = build("conditional").requires_grad_(False)
    block = flow.blocks[1]
    x, added = latents(flow, 2)[:, :-1].requires_grad_(), block.context(torch.tensor([0, -1])).added.requires_grad_()
    assert gradcheck(lambda x, added: block.conditioner(x, Context(added)), (x, added))
    embedding = block.embedding.classes.requires_grad_()
    block.context(torch.tensor([-1])).added.sum().backward()
    assert_close(embedding.grad, torch.full_like(embedding, 1 / 3))


@pytest.mark.parametrize("name", names(labelled=True))
def test_the_null_class_is_the_mean_of_the_classes_in_both_directions(name: str) -> None:
    flow = build(name)
    x, z = images(flow, 3), latents(flow, 3)
    null = torch.full((3,), -1)
    named = build(name, num_classes=flow.conditions.size + 1)  # whose last class is that mean
    state = flow.state_dict()
    for key in state:
        if key.endswith("embedding.classes"):
            state[key] = torch.cat([state[key], state[key].mean(dim=0, keepdim=True)])
    named.load_state_dict(state)
    last = torch.full((3,), flow.conditions.size)
    for got, also, want in [
        (flow.encode(x)[0], flow.encode(x, null)[0], named.encode(x, last)[0]),
        (flow.encode(x)[1], flow.encode(x, null)[1], named.encode(x, last)[1]),
        (flow.decode(z), flow.decode(z, null), named.decode(z, last)),
        (flow.log_prob(x), flow.log_prob(x, null), named.log_prob(x, last)),
    ]:
        assert_close(got, want)
        assert_close(also, want)
    if flow.conditions.size > 1 and flow.sequence.tokens > 1:
        for label in range(flow.conditions.size):
            assert not torch.allclose(flow.encode(x, torch.full((3,), label))[0], flow.encode(x)[0], atol=1e-3)


@every_flow
def test_a_new_flow_is_a_constant_map(name: str) -> None:
    """Zero weight, but the bias of the official code: shift and log-scale are the same whatever was before."""
    config = sequence_of(name)
    flow = SequenceFlow(config).double()
    y = labels(flow, 4)
    for block in flow.blocks:
        assert not block.proj_out.weight.any() and block.proj_out.bias.any()
        if flow.sequence.tokens > 1:
            value = block.conditioner(latents(flow, 4)[:, :-1], block.context(y))
            assert_close(value, value[:1, :1].expand_as(value))
    x = images(flow, 4)
    _, ladj = flow.encode(x, y)
    bent = any(name.startswith("spline") for name in config.transforms) or config.support != "real"
    if not bent:  # whose slope is not the same everywhere
        assert_close(ladj, ladj[:1].expand(4))
    assert_close(flow.decode(flow.encode(x, y)[0], y), x)


@pytest.mark.parametrize("name", names(sequences=True, bounded=True))
def test_the_bound_bounds_the_log_scale_and_vanishes_when_wide(name: str) -> None:
    flow, bound = build(name), sequence_of(name).log_scale_bound
    assert bound is not None
    x, y = images(flow, 20) * 100, labels(flow, 20)
    changed = flow.sequence.slots - 1
    _, ladj = flow.encode(x, y)
    if not any(transform.startswith("spline") for transform in flow.sequence.transforms):  # which has slopes of its own
        assert (ladj.abs() <= bound * changed * flow.sequence.dim * len(flow.blocks)).all()
    value = torch.linspace(-3, 3, 7, dtype=torch.float64)
    want = torch.tensor([bound * math.tanh(v / bound) for v in value.tolist()], dtype=torch.float64)
    affine = make_transform("affine", flow.sequence)
    assert isinstance(affine, Affine)
    assert_close(affine.log_scale(value), want, 1e-6)
    wide, free = build(name, log_scale_bound=1e6), build(name, log_scale_bound=None)
    assert_close(wide.log_prob(x / 100, y), free.log_prob(x / 100, y), 1e-9)
    assert not torch.allclose(flow.log_prob(x / 100, y), free.log_prob(x / 100, y), rtol=1e-3)


def test_an_empty_batch_stays_empty() -> None:
    flow = build("conditional")
    z, ladj = flow.encode(images(flow, 0), torch.zeros(0, dtype=torch.int64))
    assert z.shape == (0, 4, 4) and ladj.shape == (0,)
    assert flow.decode(z).shape == (0, 1, 4, 4)
