"""What the report says of the training: the best score and not the last, the last time and not the first."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from report_cases import make_run
from tarflow import checkpoint
from tarflow.checkpoint import open_run
from tarflow.report import facts
from tarflow.report.charts import Series
from tarflow.report.parts import Drawing, Table
from tarflow.report.subject import Settings, Subject

SETTINGS = Settings(images=3, limit=12, seed=5)


def subject(tmp_path: Path, lines: list[dict[str, Any]], noise: str = "uniform") -> Subject:
    run = make_run(tmp_path / "run", classes=False, noise=noise)
    (run / checkpoint.METRICS_FILE).unlink()
    for line in lines:
        checkpoint.append_metrics(run, line)
    return Subject(open_run(run), SETTINGS)


def held_out(*scores: float, name: str = "held_out_bits_per_dim") -> list[dict[str, Any]]:
    return [{"step": 10 * step, name: score} for step, score in enumerate(scores, 1)]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ((5.5, 5.25, 5.75), "step 20, held-out 5.2500 bits/dim"),  # in the middle
        ((5.25, 5.5, 5.75), "step 10, held-out 5.2500 bits/dim"),  # the first
        ((5.75, 5.5, 5.25), "step 30, held-out 5.2500 bits/dim"),  # the last
        ((5.25, math.nan, 5.25), "step 10, held-out 5.2500 bits/dim"),  # of equals the first, as training keeps it
        ((-0.5, -1.5, -1.0), "step 20, held-out -1.5000 bits/dim"),
        ((math.inf, 6.0, math.inf), "step 20, held-out 6.0000 bits/dim"),
    ],
)
def test_the_best_weights_are_those_of_the_best_score(scores: tuple[float, ...], best: str, tmp_path: Path) -> None:
    ours = subject(tmp_path, held_out(*scores))
    said = facts._progress(ours)["Best weights"]
    assert said.startswith(best)
    (table,) = facts.trained(ours)
    assert isinstance(table, Table) and said in dict(table.rows)["Best weights"]


def test_of_noisy_images_the_best_is_in_their_unit(tmp_path: Path) -> None:
    ours = subject(tmp_path, held_out(2.0, 1.0, 3.0, name="held_out_noisy_bits_per_dim"), noise="gaussian")
    assert facts._progress(ours)["Best weights"].startswith("step 20, held-out 1.0000 noisy bits/dim")


def test_the_time_is_that_of_the_last_line_that_has_one(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0, "seconds": 10.0 * step} for step in (1, 5, 9)]
    ours = subject(tmp_path, [*lines, {"step": 9, "held_out_bits_per_dim": 4.0}])
    assert facts._progress(ours)["Time"] == "9 steps in 1 min 30 s"
    assert facts._progress(subject(tmp_path / "none", [{"step": 3}])) == {}


def test_curves_are_the_lines_of_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[Series]] = {}
    real = facts.line_chart

    def noted(name: str, series: list[Series], **options: Any) -> Any:
        drawn[name] = list(series)
        return real(name, series, **options)

    monkeypatch.setattr(facts, "line_chart", noted)
    lines = [{"step": step, "loss": 8.0 / step, "bits_per_dim": 6.0 + 1 / step} for step in (1, 2, 4)]
    ours = subject(tmp_path, [*lines, *held_out(5.5, 5.25)])
    (drawing,) = facts.curves(ours)
    assert isinstance(drawing, Drawing) and len(drawing.drawings) == 2
    assert [list(s.points) for s in drawn["loss"]] == [[(1.0, 8.0), (2.0, 4.0), (4.0, 2.0)]]
    training, scores, yardstick = drawn["bits"]
    assert list(training.points) == [(1.0, 7.0), (2.0, 6.5), (4.0, 6.25)]
    assert list(scores.points) == [(10.0, 5.5), (20.0, 5.25)]
    expected = ours.likelihoods[0].yardstick
    assert expected is not None and list(yardstick.points) == [(1.0, expected.mean), (4.0, expected.mean)]


def test_the_best_of_a_trained_run_is_the_step_whose_weights_it_has(tmp_path: Path) -> None:
    """With the trainer's own numbers: what the report calls the best is what `model.safetensors` holds."""
    from tarflow.model.saving import WEIGHTS_FILE
    from tarflow.training.trainer import train
    from training_cases import run_config, splits

    config = run_config(steps=12, lr=0.1, evaluate_every=3, save_every=3, keep_last=9)
    result = train(config, splits(), tmp_path / "run")
    said = facts._progress(Subject(open_run(tmp_path / "run"), SETTINGS))["Best weights"]
    assert said.startswith(f"step {result.best_step}, held-out {result.best_score:.4f} ")
    best = tmp_path / "run" / "checkpoints" / f"step-{result.best_step}" / WEIGHTS_FILE
    assert (tmp_path / "run" / WEIGHTS_FILE).read_bytes() == best.read_bytes()
    assert dataclasses.asdict(result)["steps"] == 12
