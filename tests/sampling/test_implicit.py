"""Gradients through decoding: those of autograd through the reference, and of finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform, TransformedDistribution

import tarflow
from flow_cases import assert_close, build, every_flow, every_kind, images, labels, latents
from tarflow.sampling import implicit
from tarflow.sampling.decode import draw_noise, latents_of
from tarflow.sampling.implicit import decode_with_gradients


def gradients(flow: Any, z: Tensor, x: Tensor, direction: Tensor) -> list[Tensor]:
    """Of direction·x to z and to all weights; zeros where there is none."""
    inputs = [z, *flow.parameters()]
    found = torch.autograd.grad((x * direction).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found, strict=True)]


@every_flow
@pytest.mark.parametrize("solver", ["sequential", "jacobi"])
def test_they_are_those_of_the_reference_decode(name: str, solver: str) -> None:
    flow = build(name)
    y = labels(flow, 3)
    z = (0.5 * latents(flow, 3)).requires_grad_()
    direction = images(flow, 3, seed=4)
    want_x = flow.decode(z, y)
    x = flow.event.from_tokens(decode_with_gradients(flow, z, y, solver))
    assert_close(x.detach(), want_x.detach(), 1e-9)
    for got, want in zip(gradients(flow, z, x, direction), gradients(flow, z, want_x, direction), strict=True):
        assert_close(got, want, 1e-8 * float(1 + want.abs().amax()))


@every_kind
def test_they_are_those_of_finite_differences(name: str) -> None:
    """Along one direction of all weights together, and one of the noise."""
    flow = build(name)
    y, z, direction = labels(flow, 3), 0.5 * latents(flow, 3), images(flow, 3, seed=4)
    z.requires_grad_()
    found = gradients(flow, z, flow.event.from_tokens(decode_with_gradients(flow, z, y)), direction)
    generator = torch.Generator().manual_seed(9)
    moves = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in found]
    want = sum(float((g * move).sum()) for g, move in zip(found, moves, strict=True))

    def value(step: float) -> float:
        with torch.no_grad():
            for parameter, move in zip(flow.parameters(), moves[1:], strict=True):
                parameter += step * move
            x = flow.decode(z + step * moves[0], y)
            for parameter, move in zip(flow.parameters(), moves[1:], strict=True):
                parameter -= step * move
        return float((x * direction).sum())

    h = 1e-6
    assert (value(h) - value(-h)) / (2 * h) == pytest.approx(want, rel=1e-5)


def test_they_reach_the_condition() -> None:
    """An encoder that makes conditions is trained through its samples."""
    config = tarflow.SequenceConfig(
        tokens=3, dim=2, width=16, head_dim=8, layers=(1, 1), condition="classes:2+vector:3", log_scale_bound=0.6
    )
    flow = tarflow.SequenceFlow(config).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double())
    numbers = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    z, direction = latents(flow, 4), images(flow, 4)

    def by(decode: Any) -> Tensor:
        c = flow.check_condition((torch.tensor([0, 1, -1, 0]), numbers), 4)
        return torch.autograd.grad((decode(c) * direction).sum(), [numbers])[0]

    got = by(lambda c: decode_with_gradients(flow, z, c))
    assert_close(got, by(lambda c: flow.decode(z, c)), 1e-9)
    assert (got.abs().sum(dim=1) > 0).all()


def test_rows_go_through_in_parts_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional")
    y, z = labels(flow, 5), 0.5 * latents(flow, 5).requires_grad_()
    want = gradients(flow, z, decode_with_gradients(flow, z, y), latents(flow, 5, seed=7))
    monkeypatch.setattr(implicit, "graph_room", lambda flow: 0)
    seen = []
    honest = implicit.invert
    monkeypatch.setattr(implicit, "invert", lambda *a, **k: seen.append(len(a[1])) or honest(*a, **k))
    got = gradients(flow, z, decode_with_gradients(flow, z, y), latents(flow, 5, seed=7))
    assert seen == [1] * 10
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


def test_rows_that_overflow_leave_the_others_alone() -> None:
    """Log-scales so wild that most samples overflow, and gradients on their way: those of the finite ones are right."""
    flow = build("one_row", torch.float32)
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.weight.mul_(3)
    z = (0.3 * latents(flow, 64, dtype=torch.float32)).requires_grad_()
    x = flow.decode(z)
    fine = x.detach().abs().flatten(1).amax(dim=1) < 1e4
    assert 4 < int(fine.sum()) < 60
    direction = images(flow, 64, dtype=torch.float32) * fine.view(-1, 1, 1, 1)
    want = torch.autograd.grad((x * direction).sum(), [z])[0][fine]
    got = torch.autograd.grad((flow.event.from_tokens(decode_with_gradients(flow, z)) * direction).sum(), [z])[0][fine]
    assert ((got - want).abs().amax(dim=(1, 2)) < 1e-3 * want.abs().amax(dim=(1, 2))).all()


def test_a_weight_that_was_written_to_is_an_error_and_so_is_a_second_derivative() -> None:
    flow = build("unconditional")
    z = latents(flow, 2).requires_grad_()
    x = decode_with_gradients(flow, z)
    (first,) = torch.autograd.grad(x.square().sum(), [z], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    x = decode_with_gradients(flow, z)
    with torch.no_grad():
        flow.blocks[0].proj_in.weight.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


@pytest.mark.parametrize("name", ["conditional", "vector_of_supports", "start_token"])
def test_rsample_draws_what_sample_draws(name: str) -> None:
    flow = build(name)
    p = flow.distribution(labels(flow, 3))
    assert p.has_rsample
    torch.manual_seed(5)
    x = p.rsample((2,))
    torch.manual_seed(5)
    assert_close(x.detach(), p.sample((2,)), 1e-8)
    assert x.requires_grad and x.shape == (2, *p.batch_shape, *p.event_shape)
    assert p.rsample((0,)).shape == (0, *p.batch_shape, *p.event_shape)


def test_a_transformed_flow_is_a_distribution() -> None:
    """torch's TransformedDistribution around it: densities change by the Jacobian, and gradients reach the shift."""
    flow = build("bounded")
    shift = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    p = TransformedDistribution(flow.distribution(), [AffineTransform(shift, 2.0, event_dim=3)])
    torch.manual_seed(0)
    x = p.rsample((4,))
    assert_close(p.log_prob(x), flow.log_prob((x - shift) / 2) - 16 * torch.tensor(2.0).double().log(), 1e-9)
    grads = torch.autograd.grad(x.sum(), [shift, flow.blocks[0].proj_in.weight])
    assert float(grads[0]) == 4 * 16 and grads[1].abs().sum() > 0
    assert p.expand((3,)).rsample((2,)).shape == (2, 3, 1, 4, 4)


def test_the_noise_is_that_of_sample() -> None:
    flow = build("conditional")
    y = labels(flow, 3)
    z = latents_of(flow, draw_noise(flow, torch.arange(3), 7))
    x = flow.event.from_tokens(decode_with_gradients(flow, z, y)).detach()
    assert_close(x, tarflow.sample(flow, 3, y, seed=7), 1e-9)
