"""Flows as distributions of pyro, in the real package: a guide is trained by its own draws, with plates and without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("pyro", reason="pyro is not installed; pip install 'tarflow[pyro]'")
pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore")]

import pyro  # noqa: E402
from pyro import distributions  # noqa: E402
from pyro.infer import SVI, Predictive, Trace_ELBO  # noqa: E402
from pyro.optim import Adam  # noqa: E402

import tarflow  # noqa: E402
from tarflow.adapters.pyro import distribution  # noqa: E402


def flow_of(**fields: object) -> tarflow.VectorFlow:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return tarflow.VectorFlow(2, width=16, head_dim=8, layers=(1, 1), **fields)  # type: ignore[arg-type]


def model(data: Tensor) -> None:
    """Two normal numbers, whose sum is seen through noise of deviation 1/2."""
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", distributions.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("x", distributions.Normal(z.sum(-1), 0.5), obs=data)


def test_a_guide_is_trained_and_comes_near_the_posterior() -> None:
    flow, data = flow_of(), torch.tensor([2.0])

    def guide(data: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(data)):
            pyro.sample("z", distribution(flow))

    training = SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO(num_particles=32, vectorize_particles=True))
    losses = [training.step(data) for _ in range(120)]
    evidence = -float(torch.distributions.Normal(0.0, 1.5).log_prob(data))  # 2.21 nats, the least that is possible
    assert evidence - 0.1 < sum(losses[-20:]) / 20 < evidence + 0.15 and losses[0] > evidence + 1
    z = flow.distribution().sample((2000,))
    torch.testing.assert_close(z.mean(dim=0), torch.full((2,), 2 / 2.25), atol=0.2, rtol=0)
    torch.testing.assert_close(z.T.cov()[0, 1], torch.tensor(-1 / 2.25), atol=0.2, rtol=0)


def test_a_guide_that_is_given_the_data_in_a_plate() -> None:
    flow, data = flow_of(condition=1), torch.randn(5)

    def guide(data: Tensor) -> None:
        pyro.module("flow", flow)
        with pyro.plate("data", len(data)):
            pyro.sample("z", distribution(flow, data.unsqueeze(1)))

    with pyro.validation_enabled():
        assert SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO(num_particles=2)).step(data) > 0
    assert Predictive(model, guide=guide, num_samples=7)(data)["z"].shape == (7, 5, 2)
    trace = pyro.poutine.trace(guide).get_trace(data)
    value = trace.nodes["z"]["value"]
    torch.testing.assert_close(trace.log_prob_sum(), flow.log_prob(value, data.unsqueeze(1)).sum())


def test_it_has_what_pyro_asks_of_a_distribution() -> None:
    p = distribution(flow_of(), validate_args=True)
    assert p().shape == (2,) and p.shape((4,)) == (4, 2) and p.has_rsample and not p.has_enumerate_support
    assert type(p.expand((3,))) is type(p) and p.expand_by([3]).sample().shape == (3, 2)
    assert p.expand((3,)).to_event(1).event_shape == (3, 2)
    assert p.mask(False).log_prob(torch.zeros(3, 2)).tolist() == [0, 0, 0]
