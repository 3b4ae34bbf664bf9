"""Whatever quotes the Gaussian yardstick has fitted it to training images, and never to those that are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report_cases import make_run
from tarflow.checkpoint import open_run
from tarflow.cli import demo, main
from tarflow.data.load import Splits, load
from tarflow.evaluation.likelihood.evaluate import evaluate_likelihood
from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, fit_yardstick
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.report.subject import Settings, Subject
from tarflow.run_data import open_splits


@pytest.fixture(scope="module", params=["uniform", "gaussian"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", classes=False, noise=request.param)


def expected(run: Path, splits: Splits, draws: int, **choice: Any) -> dict[str, float]:
    """The yardstick's figures on held-out digits, fitted to the others; and that it matters which it was fitted to."""
    opened = open_run(run)
    scoring = Scoring(opened.measure, draws)
    held_out = splits.held_out.choice(**choice) if choice else splits.held_out
    figures = []
    for fitted_to in (splits.train, held_out):
        yardstick = fit_yardstick(fitted_to.images, opened.measure)
        assert isinstance(yardstick, GaussianYardstick) and yardstick.images == len(fitted_to)
        found = evaluate_likelihood(opened.flow, held_out.images, scoring=scoring, yardstick=yardstick)
        figures.append(found.to_dict())
    ours, fitted_to_these = figures
    assert abs(fitted_to_these["gaussian_yardstick"] - ours["gaussian_yardstick"]) > 0.01, "it must make a difference"
    names = ("gaussian_yardstick", "gaussian_yardstick_standard_error", "advantage", "advantage_standard_error")
    return {name: ours[name] for name in names}


def test_evaluate_fits_it_to_the_training_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--limit", "40", "--draws", "1", "--float64", "0", "--device", "cpu"]
    assert main(["evaluate", str(run), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    wanted = expected(run, open_splits(open_run(run)), 1, count=40, seed=0)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)
    assert "fitted to 1617 training images" in found["gaussian_yardstick_note"]


def test_evaluate_of_training_images_fits_it_to_all_of_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--split", "train", "--limit", "40", "--draws", "1", "--float64", "0", "--device", "cpu"]
    assert main(["evaluate", str(run), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 40 and "fitted to 1617 training images" in found["gaussian_yardstick_note"]


def test_the_report_fits_it_to_the_training_images(run: Path) -> None:
    yardstick = Subject(open_run(run), Settings(limit=40)).yardstick
    assert isinstance(yardstick, GaussianYardstick)
    assert yardstick.images == 1617


def test_the_demo_fits_it_to_the_training_images(run: Path) -> None:
    splits = load("digits", levels=17)
    found = demo._likelihood(open_run(run), splits)
    wanted = expected(run, splits, 8)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)
