"""The benchmark of posteriors: its references are exact, and its estimators are trained, drawn from and kept."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import posteriors, simulators
from tarflow.inference.calibration import ranks, uniformity
from tarflow.training.fitted import Evaluation, Fit


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "galaxy")) for name in simulators.TASKS]
)
def test_truths_have_uniform_ranks_among_draws_of_the_reference(name: str) -> None:
    generator, task = torch.Generator().manual_seed(1), simulators.TASKS[name]
    grids = {"SLCP": {"grid": 20}, "galaxy": {"coarse": 14, "fine": 12}}.get(name, {})  # of fewer points
    reference = functools.partial(task.reference, **grids)
    theta, x = task.simulate(80 if grids else 300, generator)
    draws = torch.stack([reference(observed, 19, generator) for observed in x])
    assert draws.shape == (*theta.shape[:1], 19, theta.shape[1])
    assert float(uniformity(ranks(theta, draws), 19, bins=10).min()) > 0.001
    wide = theta.mean(dim=0) + 1.7 * (draws - theta.mean(dim=0))
    assert float(uniformity(ranks(theta, wide), 19, bins=10).min()) < 0.05, "a test that sees nothing"


def test_what_patience_would_have_cost_is_read_off_the_curve() -> None:
    curve = tuple(Evaluation(10 * k, value, 0.0) for k, value in enumerate([1.0, 2.0, 1.5, 1.5, 3.0], 1))
    result = Fit(3.0, 0.1, 50, 50, "steps", curve, 0, 9, 1, 1.0)
    assert posteriors.would_stop(result, 2) == {"share": 0.8, "lost": 1.0}
    assert posteriors.would_stop(result, 3) == {"share": 1.0, "lost": 0.0}


def test_rows_are_kept_one_by_one_and_not_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[object, ...]] = []

    def measure(*key: object) -> dict[str, float]:
        measured.append(key[:4])
        if len(measured) == 3:
            raise KeyboardInterrupt
        return {"held_out": -len(measured), "nats": 1.25 + len(measured), "mean_c2st": 0.5}

    monkeypatch.setattr(posteriors, "measure", measure)
    words = ["--tasks", "two moons", "--seeds", "1", "--out", str(tmp_path / "out.json")]
    with pytest.raises(KeyboardInterrupt):
        posteriors.main(words)
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 2
    assert posteriors.main(words) == 0
    assert [key[1:4:2] for key in measured] == [
        (name, lr) for name in ("VectorFlow", "sbi NPE") for lr in posteriors.RATES[name]
    ] + [("sbi NPE", posteriors.RATES["sbi NPE"][1])]
    assert " 5.250" in capsys.readouterr().out, "the second rate, whose held-out rows are better"
    with pytest.raises(SystemExit, match="give another file"):
        posteriors.main([*words, "--draws", "60"])


def test_our_fit_fills_the_time_and_draws_within_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posteriors, "PROBE", 2)
    task = simulators.TASKS["two moons"]
    theta, x = task.simulate(100, torch.Generator().manual_seed(0))
    row, log_prob, draw = posteriors.ours(task, theta, x, 0, 2e-3, 0.2)
    assert row["steps"] >= 1 and log_prob(theta, x).shape == (100,) and len(row["curve"]) >= 1
    drawn = draw(x[0], 30)
    assert drawn.shape == (30, 2) and float(drawn.abs().max()) < 1


@pytest.mark.extra
def test_npe_of_the_other_package_stops_when_the_time_is_up() -> None:
    pytest.importorskip("sbi", reason="compares with sbi")
    task = simulators.TASKS["two moons"]
    theta, x = task.simulate(300, torch.Generator().manual_seed(0))
    row, log_prob, draw = posteriors.npe(task, theta, x, 0, 5e-4, 0.5)
    assert row["epochs"] >= 1 and log_prob(theta, x).shape == (300,)
    assert draw(x[0], 20).shape == (20, 2)
