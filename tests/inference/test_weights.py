"""Importance weights and chains of independent proposals, where the answers are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flow_cases import assert_close
from tarflow.inference.chains import effective_sample_size, independence_metropolis, rhat, rhat_bound
from tarflow.inference.weights import Weighted, importance


class Gaussian:
    """N(0, s²) as what draws and says log q."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def sample_and_log_prob(self, n: int, c: object = None, seed: int = 0) -> tuple[Tensor, Tensor]:
        q = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), self.deviation)
        x = self.deviation * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return x, q.log_prob(x)


def log_target(x: Tensor) -> Tensor:
    """N(0.5, 1), times e³."""
    return 3 - 0.5 * (x - 0.5).square() - 0.5 * math.log(2 * math.pi)


def drawn(n: int = 4000, seed: int = 0) -> Weighted:
    return importance(Gaussian(1.5), log_target, n, seed=seed)


def test_estimates_are_within_their_errors_of_what_they_estimate() -> None:
    """Over 100 repetitions (estimate - truth)/error is a standard normal, for the mean and for log Z."""
    scores = torch.zeros(100, 3, dtype=torch.float64)
    for k in range(100):
        some = drawn(400, seed=k)
        for column, (estimate, truth) in enumerate(
            [
                (some.log_normaliser, 3.0),
                (some.expectation(), 0.5),
                (some.expectation(lambda x: x.square()), 1.25),
            ]
        ):
            scores[k, column] = (estimate.mean - truth) / estimate.error
    assert (scores.mean(0).abs() < 0.3).all() and ((scores.std(0) - 1).abs() < 0.2).all(), scores.mean(0)


def test_the_effective_sample_size_is_its_formula_and_n_where_weights_are_equal() -> None:
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    some = Weighted(torch.zeros(3), weights.log() + 700)  # no overflow
    assert math.isclose(some.effective_sample_size, 1 / (0.25 + 2 * 0.0625))
    assert_close(some.weights, weights)
    equal = Weighted(torch.zeros(5), torch.full((5,), -900.0, dtype=torch.float64))
    assert math.isclose(equal.effective_sample_size, 5) and float(equal.log_normaliser.error) < 1e-7
    assert math.isclose(float(equal.log_normaliser.mean), -900)


def test_a_draw_outside_of_the_support_counts_for_nothing() -> None:
    some = Weighted(torch.tensor([1.0, 5.0]), torch.tensor([0.0, -torch.inf]))
    assert float(some.expectation().mean) == 1 and some.effective_sample_size == 1
    assert (some.resampled(10) == 1).all()


def test_resampling_keeps_shares_up_to_one() -> None:
    some = Weighted(torch.arange(3), torch.tensor([0.5, 0.3, 0.2]).log())
    counts = some.resampled(101, seed=3).bincount()
    assert ((counts - 101 * torch.tensor([0.5, 0.3, 0.2])).abs() < 1).all()


@pytest.mark.parametrize(
    ("log_weight", "message"),
    [
        ([0.0, math.nan], "expected numbers below ∞, got nan of draw 1"),
        ([math.inf, 0.0], "expected numbers below ∞, got inf of draw 0"),
        ([-math.inf, -math.inf], "no draw lies in the support"),
        ([0.0], r"expected \(2,\)"),
    ],
)
def test_weights_that_are_none_are_an_error(log_weight: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weighted(torch.zeros(2), torch.tensor(log_weight))
    with pytest.raises(ValueError, match="one number a draw"):
        importance(Gaussian(1.0), lambda x: x.sum(), 4)


def test_a_chain_of_independent_proposals_has_the_target_s_moments() -> None:
    chain = independence_metropolis(drawn(20000), chains=10)
    assert chain.draws.shape == (2000, 10) and 0.5 < float(chain.acceptance.mean()) < 1
    error = 1 / math.sqrt(float(chain.effective_sample_size))
    assert abs(float(chain.draws.mean()) - 0.5) < 4 * error
    assert abs(float(chain.draws.var()) - 1) < 6 * error
    assert float(chain.rhat) < 1.01 and float(chain.effective_sample_size) < 20000


def test_a_chain_is_the_rule_step_by_step() -> None:
    """Acceptance by hand on three proposals, one of them certain, one impossible; and a start outside."""
    x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    chain = independence_metropolis(Weighted(x, torch.tensor([0.0, 5.0, -torch.inf, 6.0])))
    assert chain.draws.flatten().tolist() == [0, 1, 1, 3] and float(chain.acceptance) == pytest.approx(2 / 3)
    outside = independence_metropolis(Weighted(x, torch.tensor([-torch.inf, -800.0, 5.0, 9.0])))
    assert outside.draws.flatten().tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="chains: expected a divisor of the 4 draws"):
        independence_metropolis(Weighted(x, torch.zeros(4)), chains=3)


def autoregressive(rho: float, steps: int = 5000, chains: int = 4) -> Tensor:
    noise = torch.randn(steps, chains, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = [noise[0]]
    for step in range(1, steps):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise[step])
    return torch.stack(x)


@pytest.mark.parametrize("rho", [0.9, 0.5, 0.0, -0.4])
def test_the_worth_of_an_autoregressive_chain_is_known(rho: float) -> None:
    """Its integrated autocorrelation time is (1+ρ)/(1-ρ)."""
    x = autoregressive(rho)
    want = x.numel() * (1 - rho) / (1 + rho)
    assert float(effective_sample_size(x)) == pytest.approx(want, rel=0.2)
    assert float(rhat(x)) < 1.01


@pytest.mark.parametrize(("steps", "chains", "numbers"), [(10, 4, 400), (20, 8, 64), (100, 4, 1)])
def test_the_bound_of_rhat_is_what_independent_draws_stay_below_and_chains_that_are_stuck_do_not(
    steps: int, chains: int, numbers: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(steps, chains, 200, numbers, generator=generator, dtype=torch.float64)
    largest = rhat(many).amax(dim=1)
    for level in (0.8, 0.95):
        passed = float((largest <= rhat_bound(steps, chains, numbers, level)).double().mean())
        assert level - 0.07 < passed < level + 0.12  # the sum over the numbers is a little too large
    bound, stuck = rhat_bound(steps, chains, numbers), torch.randn(chains, numbers, generator=generator)
    modes = torch.arange(chains).view(-1, 1) % 2 * 6.0
    drifting = torch.arange(steps).view(-1, 1, 1) * (6.0 / steps)
    assert all(float(rhat(many[:, :, 0] + apart).amax()) > bound for apart in (3 * stuck, modes, drifting))
    assert not float(rhat(stuck.expand(steps, -1, -1)).amax()) <= bound, "chains that never moved"
    assert rhat_bound(1000, 4, 400) < 1.01 < rhat_bound(100, 4, 400)


def test_rhat_goes_by_ranks() -> None:
    """Tails, and anything monotone, change nothing; and two values that are drawn again and again have ranks, too."""
    x = autoregressive(0.5, steps=200)
    assert torch.equal(rhat(x), rhat(x.exp())) and torch.isfinite(rhat((x > 0).double()))
    cauchy = torch.tan(3.14 * (torch.rand(100, 4, 50, generator=torch.Generator().manual_seed(2)) - 0.5))
    assert float(rhat(cauchy).amax()) < rhat_bound(100, 4, 50)


def test_chains_that_have_not_met_are_worth_little() -> None:
    x = autoregressive(0.0, steps=500) + 3 * torch.arange(4)
    assert float(rhat(x)) > 2 and float(effective_sample_size(x)) < 10
    both = effective_sample_size(torch.stack([x, autoregressive(0.0, steps=500)], dim=2))
    assert both.shape == (2,) and float(both[1]) > 1500
    assert effective_sample_size(torch.ones(10, 2)).isnan()
    with pytest.raises(ValueError, match="at least 4 steps"):
        rhat(torch.zeros(2, 2))
