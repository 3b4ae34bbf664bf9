"""Hamiltonian Monte Carlo on densities whose moments are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tarflow.inference.hmc import hmc

SCALES = torch.tensor([0.05, 1.0, 20.0], dtype=torch.float64)


def gaussian(x: Tensor) -> Tensor:
    """Correlated, with scales that differ by a factor of 400."""
    u = x / SCALES
    return -0.5 * (u[:, 0].square() + u[:, 1].square() + (u[:, 2] - 0.6 * u[:, 1]).square() / (1 - 0.36))


def test_moments_are_those_of_the_density() -> None:
    start = SCALES * torch.randn(16, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = start.clone()
    chains = hmc(gaussian, start, steps=200, warmup=250)
    assert torch.equal(start, before) and chains.draws.shape == (200, 16, 3) and not chains.draws.requires_grad
    ess = chains.effective_sample_size
    u = chains.draws.flatten(0, 1) / SCALES
    assert (u.mean(0).abs() < 4 / ess.sqrt()).all() and ((u.var(0) - 1).abs() < 8 / ess.sqrt()).all()
    assert abs(float((u[:, 1] * u[:, 2]).mean()) - 0.6) < 8 / float(ess.amin()) ** 0.5
    assert (chains.rhat < 1.03).all() and (ess > 600).all()
    assert ((chains.acceptance > 0.6) & (chains.acceptance < 1)).all()
    assert ((chains.scale / SCALES).log().abs() < 0.7).all(), "warm-up finds the scale of each number"


def test_each_chain_is_tuned_by_itself() -> None:
    """One density a chain, 1000 times as wide from the first to the last: all are accepted alike."""
    widths = torch.tensor([0.01, 1.0, 10.0], dtype=torch.float64)
    chains = hmc(lambda x: -0.5 * (x / widths.unsqueeze(1)).square().sum(1), torch.zeros(3, 2).double(), 250, 200)
    assert (chains.acceptance > 0.6).all()
    assert ((chains.draws.std((0, 2)) / widths - 1).abs() < 0.25).all()


def test_chains_of_one_density_share_what_warm_up_finds() -> None:
    """Two densities, 30 times as wide the one as the other, of four chains each: two scales, two step sizes."""
    widths = torch.tensor([1.0, 30.0], dtype=torch.float64).repeat_interleave(4).unsqueeze(1)
    chains = hmc(lambda x: -0.5 * (x / widths).square().sum(1), torch.zeros(8, 2).double(), 100, 60, pooled=4)
    for each in (chains.scale, chains.step_size):
        groups = each.view(2, 4, -1)
        assert (groups == groups[:, :1]).all() and not torch.equal(groups[0], groups[1])
    assert ((chains.scale / widths).log().abs() < 0.5).all()


def test_trajectories_are_as_long_as_the_widest_direction_asks_for() -> None:
    """Eight numbers of correlation 0.99, along which a fixed few leapfrog steps are a random walk."""
    covariance = 0.99 * torch.ones(8, 8, dtype=torch.float64) + 0.01 * torch.eye(8, dtype=torch.float64)
    precision, start = torch.linalg.inv(covariance), torch.zeros(16, 8, dtype=torch.float64)
    counts = []

    def density(x: Tensor) -> Tensor:
        counts.append(1)
        return -0.5 * torch.einsum("nd,de,ne->n", x, precision, x)

    worth = []
    for leapfrog in (4, None):
        counts.clear()
        chains = hmc(density, start, 60, 60, leapfrog, pooled=16)
        worth.append(float(chains.effective_sample_size.amin()) / len(counts))
    assert worth[1] > 2 * worth[0], "more independent draws for each evaluation"


def test_it_ends_in_time_and_says_how_far_it_is() -> None:
    shares: list[float] = []
    start = torch.zeros(2, 3, dtype=torch.float64)
    chains = hmc(gaussian, start, 10**6, 10**6, seconds=0.1, progress=lambda share, _: shares.append(share))
    assert 4 <= len(chains.draws) < 10**4 and shares[-1] == 1 and shares == sorted(shares)
    assert len(hmc(gaussian, start, 10, 10**6, seconds=0.01).draws) >= 4


def test_a_density_with_an_edge_is_not_left() -> None:
    """Half a normal: outside there is no density, and a gradient of NaN leads nowhere."""

    def half(x: Tensor) -> Tensor:
        return torch.where(x > 0, -0.5 * x.square(), torch.nan).sum(1)

    chains = hmc(half, torch.ones(80, 1, dtype=torch.float64), steps=80, warmup=40)  # more chains cost nothing
    assert (chains.draws > 0).all()
    assert abs(float(chains.draws.mean()) - (2 / torch.pi) ** 0.5) < 0.06


def test_it_is_a_function_of_its_seed() -> None:
    start = torch.ones(2, 3, dtype=torch.float64)
    first, again, other = (hmc(gaussian, start, 5, 5, seed=seed).draws for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": torch.full((2, 3), torch.nan)}, "finite log-density, got nan of chain 0"),
        ({"start": torch.zeros(3)}, r"start: expected floating \(chains, d\)"),
        ({"steps": 0}, "steps"),
        ({"target": 1.0}, "target: expected a number between 0 and 1"),
        ({"step_size": 0.0}, "step_size"),
        ({"pooled": 3}, "pooled: expected a divisor of the 2 chains, got 3"),
        ({"seconds": 0}, "seconds: expected a positive number"),
        ({"leapfrog": 0}, "leapfrog"),
        ({"log_density": lambda x: x.sum()}, r"log_density: expected \(2,\)"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"log_density": lambda x: -x.square().sum(1), "start": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        hmc(**arguments | changes)  # type: ignore[arg-type]
