"""Density estimators for `sbi`, in the real package: NPE and NLE come to the posterior of a Gaussian."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("sbi", reason="sbi is not installed; pip install 'tarflow[sbi]'")
pytestmark = [pytest.mark.extra, pytest.mark.filterwarnings("ignore")]  # sbi's own, and of what it imports

from sbi.inference import NLE, NPE  # noqa: E402
from sbi.utils import BoxUniform  # noqa: E402

from flow_cases import randomise  # noqa: E402
from tarflow.adapters import sbi  # noqa: E402
from tarflow.adapters.sbi import FlowEstimator  # noqa: E402

SMALL: dict[str, Any] = dict(width=16, head_dim=8, layers=(1, 1))
SIGMA = 0.3


def simulate(theta: Tensor) -> Tensor:
    """x ~ N(θ, 0.3²), of which the posterior under a wide flat prior is N(x, 0.3²)."""
    return theta + SIGMA * torch.randn_like(theta)


def simulations(count: int) -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
    theta = prior.sample((count,))
    return prior, theta, simulate(theta)


def estimator(**fields: Any) -> FlowEstimator:
    torch.manual_seed(0)
    found = sbi.posterior(**{**SMALL, **fields})(torch.randn(50, 2), torch.randn(50, 3))
    randomise(found.flow)
    return found


def test_log_probs_are_those_of_the_flow_under_every_shape() -> None:
    p, x, c = estimator(), torch.randn(4, 2), torch.randn(4, 3)
    expected = p.flow.log_prob(x, p.embedding_net(c))
    torch.testing.assert_close(p.log_prob(x, c), expected[None])
    torch.testing.assert_close(p.log_prob(x[None], c), expected[None])
    torch.testing.assert_close(
        p.log_prob(x[:, None], c[:1])[:, 0], p.flow.log_prob(x, p.embedding_net(c[:1].expand(4, 3)))
    )
    torch.testing.assert_close(p.loss(x, c), -expected)
    assert p.log_prob(torch.randn(7, 4, 2), c).shape == (7, 4)
    assert p.log_prob(torch.randn(7, 1, 2), c).shape == (7, 4)


def test_draws_have_their_density_and_their_order() -> None:
    p, c = estimator(), torch.randn(3, 3)
    x, log_prob = p.sample_and_log_prob((5,), c)
    assert x.shape == (5, 3, 2) and log_prob.shape == (5, 3)
    torch.testing.assert_close(log_prob, p.log_prob(x, c), atol=1e-4, rtol=1e-4)
    assert p.sample((2, 4), c).shape == (2, 4, 3, 2) and p.sample((0,), c).shape == (0, 3, 2)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(p.sample((5,), c))
    assert torch.equal(*draws) and not torch.equal(draws[0], p.sample((5,), c))


def test_gradients_reach_the_embedding_and_the_condition() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    build = sbi.posterior(network, **SMALL)
    p = build(torch.randn(50, 2), torch.randn(50, 3, 4))
    randomise(p.flow)
    c = torch.randn(6, 3, 4, requires_grad=True)
    p.loss(torch.randn(6, 2), c).mean().backward()
    assert c.grad is not None and bool((c.grad != 0).any())
    assert all(weight.grad is not None for weight in network.parameters())
    assert isinstance(pickle.loads(pickle.dumps(p)), FlowEstimator)


@pytest.mark.parametrize(
    ("network", "theta", "x", "message"),
    [
        (None, (50, 2), (50, 3, 4), "expected vectors .* to condition on, or an embedding_net"),
        (nn.Identity(), (50, 2), (50, 3, 4), r"embedding_net: expected vectors \(B, N\), got \(2, 3, 4\)"),
        (None, (50, 2, 2), (50, 3), "expected vectors .* to have a density"),
    ],
)
def test_what_is_no_vector_is_one_line(network: Any, theta: Any, x: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sbi.posterior(network)(torch.randn(theta), torch.randn(x))


@pytest.mark.slow
def test_npe_comes_to_the_posterior() -> None:
    prior, theta, x = simulations(2000)
    inference = NPE(prior, density_estimator=sbi.posterior(**SMALL), show_progress_bars=False)
    inference.append_simulations(theta, x).train(training_batch_size=200, learning_rate=5e-3, max_num_epochs=25)
    draws = inference.build_posterior().sample((1000,), x=torch.tensor([[0.5, -0.5]]), show_progress_bars=False)
    torch.testing.assert_close(draws.mean(dim=0), torch.tensor([0.5, -0.5]), atol=0.1, rtol=0)
    torch.testing.assert_close(draws.std(dim=0), torch.full((2,), SIGMA), atol=0.07, rtol=0)


@pytest.mark.slow
def test_nle_comes_to_the_posterior() -> None:
    prior, theta, x = simulations(2000)
    inference = NLE(prior, density_estimator=sbi.likelihood(**SMALL), show_progress_bars=False)
    inference.append_simulations(theta, x).train(training_batch_size=200, learning_rate=5e-3, max_num_epochs=25)
    posterior = inference.build_posterior(
        mcmc_method="slice_np_vectorized", mcmc_parameters={"num_chains": 20, "thin": 1, "warmup_steps": 20}
    )
    draws = posterior.sample((400,), x=torch.tensor([[0.5, -0.5]]), show_progress_bars=False)
    torch.testing.assert_close(draws.mean(dim=0), torch.tensor([0.5, -0.5]), atol=0.12, rtol=0)
    torch.testing.assert_close(draws.std(dim=0), torch.full((2,), SIGMA), atol=0.08, rtol=0)


def test_the_block_of_the_page_runs() -> None:
    text = (Path(__file__).resolve().parent.parent.parent / "docs" / "tables.md").read_text()
    (block,) = [part.split("```")[0] for part in text.split("```python\n") if part.startswith("from sbi")]
    names: dict[str, Any] = {
        "torch": torch,
        "theta": torch.rand(100, 2) + torch.tensor([-0.5, 0.5]),
        "observed": torch.zeros(1, 2),
    }
    names["x"] = simulate(names["theta"])
    exec(block, names)
    assert names["samples"].shape == (100, 2)
