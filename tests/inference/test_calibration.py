"""Calibration of posteriors that are known: exact ones, and those too narrow, too wide, or off to a side."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tarflow.inference.calibration import Coverage, c2st, expected_coverage, local_c2st, ranks, tarp, uniformity
from tarflow.report.calibration import coverage_chart, rank_chart, rank_histogram, write_charts

N, L = 500, 200


def posterior(width: float = 1.0, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Truths (N, 2), draws (N, L, 2), and log-densities at both, of a posterior `width` times as wide as the exact one.

    θ ~ N(0, 1), x = θ + N(0, 1): θ|x ~ N(x/2, 1/2).
    """
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    truth = normal(N, 2)
    mean = (truth + normal(N, 2)) / 2 + shift
    q = torch.distributions.Normal(mean.unsqueeze(1), width * 0.5**0.5)
    draws = mean.unsqueeze(1) + width * 0.5**0.5 * normal(N, L, 2)
    return truth, draws, q.log_prob(truth.unsqueeze(1)).sum(2).squeeze(1), q.log_prob(draws).sum(2)


def test_ranks_are_uniform_where_the_posterior_is_exact() -> None:
    truth, draws, *_ = posterior()
    found = ranks(truth, draws)
    assert found.shape == (N, 2) and int(found.amin()) >= 0 and int(found.amax()) <= L
    assert (uniformity(found, L) > 0.01).all()
    assert abs(float(found.double().mean()) / L - 0.5) < 0.03


@pytest.mark.parametrize(("width", "middle"), [(0.5, False), (2.0, True)])
def test_ranks_lie_at_the_ends_where_it_is_too_narrow_and_in_the_middle_where_too_wide(
    width: float, middle: bool
) -> None:
    truth, draws, *_ = posterior(width)
    found = ranks(truth, draws).double() / L
    inside = ((found > 0.25) & (found < 0.75)).double().mean()
    assert (inside > 0.6) if middle else (inside < 0.4)
    assert (uniformity(ranks(truth, draws), L) < 1e-6).all()


def test_the_test_of_uniformity_is_right_as_often_as_it_says() -> None:
    drawn = torch.randint(0, 101, (400, 300), generator=torch.Generator().manual_seed(1))
    p = uniformity(drawn, 100)  # 300 numbers
    assert 0.02 < float((p < 0.05).double().mean()) < 0.09 and abs(float(p.mean()) - 0.5) < 0.06


def test_coverage_is_what_is_claimed_where_the_posterior_is_exact() -> None:
    truth, draws, at_truth, at_draws = posterior()
    for coverage in (tarp(truth, draws), expected_coverage(at_truth, at_draws)):
        assert coverage.p_value > 0.01 and abs(coverage.excess) < 0.03
        assert ((coverage.covered - coverage.levels).abs() <= 4 * coverage.error + 1e-9).all()


def test_coverage_says_which_way_a_posterior_is_wrong() -> None:
    truth, draws, at_truth, at_draws = posterior(0.5)
    narrow = expected_coverage(at_truth, at_draws)
    assert narrow.excess < -0.1 and narrow.p_value < 1e-6
    balls = tarp(truth, draws)
    difference = balls.covered - balls.levels
    assert balls.p_value < 1e-3 and difference[15] > 0 > difference[85]
    truth, draws, at_truth, at_draws = posterior(2.0)
    wide = expected_coverage(at_truth, at_draws)
    assert wide.excess > 0.1 and wide.p_value < 1e-6
    truth, draws, *_ = posterior(shift=0.7)
    assert tarp(truth, draws, torch.full_like(truth, -3)).p_value < 1e-6


def test_coverage_of_credibilities_by_hand() -> None:
    coverage = Coverage.of(torch.linspace(0.025, 0.975, 20))
    assert coverage.p_value > 0.99 and float(coverage.covered[50]) == 0.5
    assert Coverage.of(torch.full((20,), 0.5)).p_value < 1e-3


def test_a_classifier_tells_what_differs_and_no_more() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(300, 2, generator=generator) for _ in range(2))
    same, apart, far = (c2st(x, y + shift, folds=3) for shift in (0.0, 1.5, 8.0))
    assert abs(float(same.mean) - 0.5) < 0.07 and float(same.error) < 0.05
    assert 0.72 < float(apart.mean) < 0.95, "the best there is has Φ(1.5/√2) = 0.86"
    assert float(far.mean) > 0.99


def test_what_does_not_fit_is_said() -> None:
    truth, draws, at_truth, at_draws = posterior()
    for wrong in (lambda: ranks(truth, draws[:, :, :1]), lambda: tarp(truth[:5], draws)):
        with pytest.raises(ValueError, match=r"expected truths \(N, d\) and draws \(N, L, d\)"):
            wrong()
    with pytest.raises(ValueError, match=r"expected log-densities \(N,\) and \(N, L\)"):
        expected_coverage(at_truth[1:], at_draws)
    with pytest.raises(ValueError, match="at least 10 simulations"):
        uniformity(torch.zeros(3, 1), 10)
    with pytest.raises(ValueError, match="expected samples of one shape, 10 at least"):
        c2st(truth[:4], truth)


def test_charts_are_whole_documents(tmp_path: Path) -> None:
    truth, draws, at_truth, at_draws = posterior(0.5)
    charts = [
        ("ranks", rank_chart(ranks(truth, draws)[:, 0], L, "mass & charge")),
        ("coverage", coverage_chart(expected_coverage(at_truth, at_draws))),
    ]
    write_charts(tmp_path / "c.svg", charts)
    root = ET.parse(tmp_path / "c.svg").getroot()
    lines = root.findall(".//{*}polyline")
    assert len(lines) == 4 and "mass & charge" in "".join(root.itertext())
    curve = [float(point.split(",")[1]) for point in (lines[2].get("points") or "").split()]
    band = [float(point.split(",")[1]) for point in (lines[3].get("points") or "").split()]
    assert max(curve) > max(band), "below the band: too sure of itself (the vertical axis points down)"


def test_a_histogram_of_ranks_is_flat_within_its_band_where_they_are_uniform() -> None:
    uniform, middle = torch.arange(1000) % 100, 40 + torch.arange(1000) % 20
    for ranks_, inside in ((uniform, True), (middle, False)):
        root = ET.fromstring(rank_histogram(ranks_, 99))
        counted, band = (
            [float(point.split(",")[1]) for point in (line.get("points") or "").split()]
            for line in root.iter()
            if line.tag.endswith("polyline")
        )
        assert (min(band) <= min(counted) and max(counted) <= max(band)) == inside
        assert len(counted) == 40


def test_a_posterior_that_is_wrong_for_some_data_is_found_there_alone() -> None:
    torch.manual_seed(0)
    theta = torch.randn(400, 1)
    data = theta + torch.randn(400, 1)

    def draw(data: torch.Tensor) -> torch.Tensor:
        """Exact where the data are negative; too far up where they are positive."""
        return data / 2 + 0.5**0.5 * torch.randn_like(data) + (data > 0)

    observed = torch.tensor([[-1.0], [1.0]])
    there = draw(observed.expand(2, 200).reshape(-1, 1)).view(2, 200, 1)
    found = local_c2st(theta, data, draw(data), observed, there, trials=4)
    assert found.statistic.shape == found.p_value.shape == (2,) and found.null.shape == (4, 2)
    assert found.p_value[1] == pytest.approx(1 / 5) and found.statistic[1] > 3 * found.null[:, 1].max()
    assert found.statistic[1] > 4 * found.statistic[0]
    with pytest.raises(ValueError, match="10 simulations at least"):
        local_c2st(theta, data[:5], theta, observed, there)
