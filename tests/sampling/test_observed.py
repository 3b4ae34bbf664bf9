"""Given what is observed: exact where all blocks walk in one order, and an error elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tarflow
from flow_cases import KINDS, assert_close, build, images, in_one_order, labels, sequence_of

CASES = [name for name in KINDS if sequence_of(name).tokens > 1]
every_case = pytest.mark.parametrize("name", CASES)


def split(flow: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The past and the future of events: about half of the rows of an image, of tokens or of numbers."""
    axis = 2 if x.ndim == 4 else 1
    step = flow.config.patch_size if x.ndim == 4 else x.shape[1] // flow.sequence.tokens if x.ndim == 2 else 1
    at = max(step, x.shape[axis] // 2 // step * step)
    return x.narrow(axis, 0, at), x.narrow(axis, at, x.shape[axis] - at)


def joined(past: Tensor, future: Tensor) -> Tensor:
    """Events of pasts (B, …) and futures (B, …)."""
    return torch.cat([past, future], dim=2 if past.ndim == 4 else 1)


@every_case
def test_the_conditional_density_is_the_joint_one_over_that_of_the_past(name: str) -> None:
    """log p(x) - log p(future | past) is the same for every future: the log-density of the past."""
    flow = in_one_order(name)
    y, (past, _) = labels(flow, 2), split(flow, images(flow, 2))
    p = flow.condition(past, y)
    futures = torch.stack([split(flow, images(flow, 2, seed=seed))[1] for seed in range(4)])
    conditional = p.log_prob(futures)
    joint = torch.stack([flow.log_prob(joined(past, future), y) for future in futures])
    assert conditional.shape == (4, 2)
    assert_close((joint - conditional)[1:], (joint - conditional)[:1].expand(3, -1), 1e-9)


@every_case
@pytest.mark.parametrize("solver", ["sequential", "jacobi"])
def test_a_future_is_drawn_after_its_past(name: str, solver: str) -> None:
    """Whoever encodes what was drawn finds the noise that it was drawn from, behind the latents of the past."""
    from tarflow.sampling.decode import draw_noise, latents_of
    from tarflow.sampling.observed import futures

    flow = in_one_order(name)
    y, x = labels(flow, 3), images(flow, 3)
    known = 1 if flow.sequence.tokens < 4 else 2
    drawn = futures(flow, x, known, y, seed=5, solver=solver)
    z, _ = flow.encode(drawn, y)
    assert_close(z[:, :known], flow.encode(x, y)[0][:, :known], 1e-7)
    assert_close(z[:, known:], latents_of(flow, draw_noise(flow, torch.arange(3), 5))[:, known:], 1e-7)


@every_case
def test_it_is_a_distribution(name: str) -> None:
    flow = in_one_order(name)
    y, (past, future) = labels(flow, 3), split(flow, images(flow, 3))
    p = flow.condition(past, y)
    assert p.batch_shape == (3,) and p.event_shape == future.shape[1:]
    torch.manual_seed(1)
    x = p.sample(4)
    torch.manual_seed(1)
    assert torch.equal(x, p.sample((4,))) and x.shape == (4, 3, *p.event_shape) and p.sample().shape == x.shape[1:]
    assert p.log_prob(x).shape == (4, 3) and torch.isfinite(p.log_prob(x)).all()
    assert p.support.event_dim == len(p.event_shape) and bool(p.support.check(x).all())
    outside = flow.event.support.check(joined(past, future - 9))
    assert torch.equal(p.support.check(future - 9), outside), "of the future as of the whole, whose past is inside"
    one = flow.condition(past[0], None if y is None else flow.conditions.rows(y, torch.tensor(0)))
    assert one.batch_shape == () and one.sample(2).shape == (2, *p.event_shape)
    assert_close(one.log_prob(x[:, 0]).detach(), p.log_prob(x)[:, 0].detach())
    assert bool(flow.event.support.check(joined(past, x[0])).all())


def test_draws_agree_with_the_density() -> None:
    """E_p[q/p] = 1 for any density q: here, of the same flow under another past."""
    flow = in_one_order("random_orders")
    past = 0.3 * images(flow, 2)[:, :2]
    p, q = flow.condition(past[0], 1), flow.condition(past[1], 1)
    torch.manual_seed(0)
    x = p.sample(3000)
    with torch.no_grad():
        ratio = (q.log_prob(x) - p.log_prob(x)).clamp(max=8).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 3000**0.5


def test_what_cannot_be_conditioned_on_is_said() -> None:
    flow = build("conditional")
    with pytest.raises(ValueError, match="all walk in raster order .* tarflow.inpaint"):
        flow.condition(torch.zeros(1, 2, 4))
    flow = build("conditional", order="causal")
    for shape in [(1, 4, 4), (1, 0, 4), (1, 1, 4), (1, 4, 2), (1, 2, 2), (4, 4), (2,)]:
        with pytest.raises(ValueError, match="prefix: expected the first tokens of images"):
            flow.condition(torch.zeros(shape))
    past = torch.zeros(3, 1, 2, 4)
    with pytest.raises(ValueError, match="expected one value, or one for each past"):
        flow.condition(past, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"value: expected \(…, 3, 1, 2, 4\), got \(2, 1, 2, 4\)"):
        flow.condition(past, 1).log_prob(torch.zeros(2, 1, 2, 4))
    with pytest.raises(tarflow.SamplingError, match="not finite"):
        flow.condition(torch.full((1, 2, 4), torch.nan)).sample()
