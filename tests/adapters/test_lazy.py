"""`lazy`: a module that is called with a condition and returns a distribution, wherever zuko's flows stand."""

from __future__ import annotations

import pytest
import torch

import tarflow
from flow_cases import randomise
from tarflow.adapters import lazy


def make() -> tarflow.VectorFlow:
    torch.manual_seed(0)
    return randomise(tarflow.VectorFlow(2, condition=3, width=16, head_dim=8, layers=(1, 1)))


def test_it_is_the_distribution_of_the_flow_and_shares_its_weights() -> None:
    flow = make()
    p, c, x = lazy(flow), torch.randn(5, 3), torch.randn(5, 2)
    assert p(c).batch_shape == (5,) and p(c).event_shape == (2,)
    torch.testing.assert_close(p(c).log_prob(x), flow.log_prob(x, c))
    torch.testing.assert_close(p().log_prob(x), flow.log_prob(x))
    assert p(c).sample((4,)).shape == (4, 5, 2)
    assert [id(weight) for weight in p.parameters()] == [id(weight) for weight in flow.parameters()]
    p(c).log_prob(x).mean().backward()
    assert all(weight.grad is not None for weight in flow.blocks[0].layers.parameters())


@pytest.mark.extra
def test_it_is_the_base_of_one_of_zukos_flows() -> None:
    zuko = pytest.importorskip("zuko", reason="zuko is not installed")
    flow, c, x = make(), torch.randn(5, 3), torch.randn(5, 2)
    unit = zuko.flows.UnconditionalTransform(zuko.transforms.MonotonicAffineTransform, torch.ones(2), torch.zeros(2))
    both = zuko.flows.Flow(unit, lazy(flow))
    shifted = both(c).transform(x)
    torch.testing.assert_close(shifted, x + 1)
    torch.testing.assert_close(both(c).log_prob(x), flow.log_prob(x + 1, c))
    assert both(c).sample((3,)).shape == (3, 5, 2)
