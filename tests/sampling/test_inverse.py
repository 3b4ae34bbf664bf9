"""A flow in its other direction, and what it is trained on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tarflow
from flow_cases import assert_close, build, every_flow, every_kind, images, labels, latents
from tarflow.sampling.objectives import rsample_and_log_prob


@every_flow
def test_a_draw_comes_with_its_density(name: str) -> None:
    flow = build(name)
    y = labels(flow, 3)
    q = flow.inverse()
    x, log_q = q.rsample_and_log_prob(3, y, seed=2)
    assert x.shape == (3, *flow.event.shape) and log_q.shape == (3,)
    assert bool(flow.event.support.check(x).all())
    assert_close(q.log_prob(x.detach(), y).detach(), log_q.detach(), 1e-8)
    assert_close(q.sample(3, y, seed=2), x.detach())


@every_flow
def test_the_density_is_that_of_the_jacobian(name: str) -> None:
    """log q(x) = log N(u) - log|det ∂x/∂u|."""
    flow = build(name)
    q, u, y = flow.inverse(), latents(flow, 1), labels(flow, 1)
    size = u.numel()
    jacobian = torch.autograd.functional.jacobian(lambda u: q(u, y)[0].flatten(), u).reshape(size, size)
    with torch.no_grad():
        want = flow.base.log_prob(u).sum() - torch.linalg.slogdet(jacobian)[1]
        assert_close(q(u, y)[1], want.unsqueeze(0), 1e-8)


@every_kind
def test_the_density_of_given_x_has_gradients(name: str) -> None:
    flow = build(name)
    q, y = flow.inverse(), labels(flow, 2)
    x = images(flow, 2).requires_grad_()
    q.log_prob(x, y).sum().backward()
    assert x.grad is not None
    move = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = 1e-6
    with torch.no_grad():
        difference = (q.log_prob(x + h * move, y).sum() - q.log_prob(x - h * move, y).sum()) / (2 * h)
    assert float((x.grad * move).sum()) == pytest.approx(float(difference), rel=1e-5)
    parameter = flow.blocks[0].proj_in.weight
    move = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        values = []
        for step in (h, -2 * h):
            parameter += step * move
            values.append(q.log_prob(x, y).sum())
        parameter += h * move
    assert parameter.grad is not None
    assert float((parameter.grad * move).sum()) == pytest.approx(float(values[0] - values[1]) / (2 * h), rel=1e-5)


SHIFT = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def log_target(x: Tensor) -> Tensor:
    """Correlated normal numbers (n, 3, 1), times e²; of which log Z is 2."""
    u = x.squeeze(2) - SHIFT
    u = torch.stack([u[:, 0], u[:, 1] - 0.8 * u[:, 0], (u[:, 2] + 0.5 * u[:, 1]) / 0.3], dim=1)
    return 2 - 0.5 * u.square().sum(dim=1) - 1.5 * math.log(2 * math.pi) - math.log(0.3)


@pytest.mark.parametrize(("inverse", "mixed"), [(True, False), (False, True)])
def test_reverse_kl_finds_the_density_and_its_constant(inverse: bool, mixed: bool) -> None:
    torch.manual_seed(0)
    config = tarflow.SequenceConfig(tokens=3, dim=1, width=16, head_dim=16, layers=(1, 1), start_token=True)
    flow = tarflow.SequenceFlow(config).double()
    q = flow.inverse() if inverse else flow
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-2)
    u = torch.randn(64, 3, dtype=torch.float64)
    x = torch.stack([u[:, 0], u[:, 1] + 0.8 * u[:, 0], torch.zeros(64)], dim=1)
    x[:, 2] = 0.3 * u[:, 2] - 0.5 * x[:, 1]
    x = (x + SHIFT).unsqueeze(2)
    for step in range(50):
        optimizer.zero_grad()
        if mixed:
            loss = tarflow.mixed_kl(q, log_target, x, 32, share=0.3, seed=step)
        else:
            loss = tarflow.reverse_kl(q, log_target, 48, seed=step)
        loss.backward()
        optimizer.step()
    drawn = tarflow.importance(q, log_target, 1000, seed=123)
    assert drawn.effective_sample_size > 300
    assert abs(float(drawn.log_normaliser.mean) - 2) < 5 * float(drawn.log_normaliser.error)
    error = (drawn.expectation().mean.squeeze(1) - SHIFT) / drawn.expectation().error.squeeze(1)
    assert (error.abs() < 5).all()


def test_a_flow_s_own_reverse_kl_has_no_gradient_where_it_is_the_target() -> None:
    """E_q ∇ log q = 0, up to the noise of its draws, and the divergence is 0."""
    flow, frozen = build("conditional"), build("conditional")
    y = torch.tensor([0, 1, 2] * 20)
    x, log_q = rsample_and_log_prob(flow, 60, y)
    assert_close(log_q.detach(), flow.log_prob(x.detach(), y).detach(), 1e-8)
    loss = tarflow.reverse_kl(flow, lambda x: frozen.log_prob(x, y), 60, y)
    assert abs(float(loss.detach())) < 1e-8
    with pytest.raises(ValueError, match=r"log_target: expected \(2,\)"):
        tarflow.reverse_kl(flow, lambda x: x.sum(), 2)
    with pytest.raises(ValueError, match="share"):
        tarflow.mixed_kl(flow, log_target, x, 2, share=1.5)
