"""The benchmark of forecasts: scores by hand, a simulator with the variance that it says, and each method at work."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import forecast, posteriors


def test_scores_are_those_of_a_normal_variable() -> None:
    """CRPS of N(0, 1) at 0 is (√2 - 1)/√π; of a single answer it is the distance."""
    generator = torch.Generator().manual_seed(0)
    ensemble = torch.randn(40, 60, 1, 16, 16, generator=generator)
    found = forecast.scores(ensemble, torch.zeros(60, 1, 16, 16))
    assert found["CRPS"] == pytest.approx((2**0.5 - 1) / math.pi**0.5, abs=2e-3)
    assert found["CRPS of patches"] == pytest.approx(found["CRPS"] / 4, rel=0.05)
    norms = ensemble.flatten(2)[:, :1]  # of one state, by the formula
    pairs = sum(float((a - b).norm()) for a in norms for b in norms) / (40 * 39)
    by_hand = (float(norms.norm(dim=2).mean()) - pairs / 2) / 16
    assert forecast.scores(ensemble[:, :1], torch.zeros(1, 1, 16, 16))["energy score"] == pytest.approx(
        by_hand, rel=1e-3
    )
    one = forecast.scores(torch.ones(1, 3, 1, 16, 16), torch.zeros(3, 1, 16, 16))
    assert one == {"CRPS": 1.0, "CRPS of patches": 1.0, "energy score": 1.0}
    truth = torch.randn(60, 1, 16, 16, generator=generator)
    assert forecast.scores(ensemble, truth)["spread over error"] == pytest.approx(1, abs=0.03)


def test_what_follows_is_carried_and_smoothed(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    now = forecast.fields(500, generator)
    assert float(now.std()) == pytest.approx(1, abs=0.05)
    monkeypatch.setattr(forecast, "WIND", 0.0)
    monkeypatch.setattr(forecast, "SMOOTHING", 0.0)
    still = forecast.following(now, generator) - now
    assert float(still.std()) == pytest.approx(forecast.FRESH, rel=0.1)


@pytest.mark.slow
def test_every_method_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(posteriors, "PROBE", 1)
    monkeypatch.setattr(forecast, "SIDE", 8)
    words = "--seconds 0.1 --seeds 1 --pairs 40 --states 4 --members 3".split()  # noqa: SIM905
    assert forecast.main([*words, "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{method} " in printed for method in forecast.METHODS[1:])
