"""What `tarflow evaluate` prints beside the likelihood: bounds, parts, precision, and anomalies."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flow_cases import build
from tarflow import checkpoint
from tarflow.checkpoint import write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.data.load import load_all
from tarflow.evaluation.likelihood.anomalies import ImageScores, detect, inverted
from tarflow.evaluation.likelihood.held_out import image_scores, run_scoring
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes, smooth ones without a class, and runs of both kinds of noise."""
    root = tmp_path_factory.mktemp("more")
    generator = np.random.default_rng(0)
    for folder in ("classes/a", "classes/b", "classes/c"):
        (root / folder).mkdir(parents=True)
        for i in range(5):
            Image.fromarray(generator.integers(0, 256, (4, 4), dtype=np.uint8)).save(root / folder / f"{i}.png")
    (root / "smooth").mkdir()
    for i in range(6):
        Image.fromarray(np.full((4, 4), 20 * i, dtype=np.uint8)).save(root / "smooth" / f"{i}.png")
    for name, case, training in (
        ("uniform", "conditional", TrainingConfig(steps=1, noise="uniform")),
        ("gaussian", "conditional", TrainingConfig(steps=1, noise_std=0.3)),
        ("plain", "unconditional", TrainingConfig(steps=1, noise="uniform")),
    ):
        flow = build(case, torch.float32)
        flow.save_pretrained(root / name)
        data = DataConfig(source=str(root / "classes"), class_names=tuple("abc"[: flow.config.num_classes]))
        write_config(root / name, RunConfig(flow.config, data, training))
    return root


def evaluate(capsys: pytest.CaptureFixture[str], run: Path, *arguments: str | Path) -> dict[str, Any]:
    assert main(["evaluate", str(run), "--split", "all", "--device", "cpu", *map(str, arguments)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_bound_is_below_the_score_and_rises_with_the_draws(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(capsys, place / "uniform", "--draws", "8")
    curve = found["importance_curve"]
    assert list(curve) == ["1", "2", "4", "8"] and list(curve.values()) == sorted(curve.values(), reverse=True)
    assert found["importance_bits_per_dim"] == curve["8"] < curve["1"]
    assert curve["1"] == pytest.approx(found["bits_per_dim"])
    noisy = evaluate(capsys, place / "gaussian")
    assert noisy["importance_bits_per_dim"] is noisy["importance_curve"] is None


def test_classes_and_patches_add_up(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, name in (("uniform", "bits_per_dim"), ("gaussian", "noisy_bits_per_dim")):
        found = evaluate(capsys, place / run, "--by-patch")
        assert {label: part["images"] for label, part in found["by_class"].items()} == dict.fromkeys("abc", 5)
        assert np.mean([part[name] for part in found["by_class"].values()]) == pytest.approx(found[name])
        assert np.shape(found["by_patch"]) == (2, 2)
        assert np.mean(found["by_patch"]) == pytest.approx(found[name])
    found = evaluate(capsys, place / "plain", "--data", place / "smooth")
    assert found["by_class"] is found["by_patch"] is found["against"] is None


def test_float64_is_where_it_is_asked_for(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(capsys, place / "uniform", "--float64", "3")
    assert found["float64_images"] == 3
    assert abs(found["float64_difference"]) <= found["float64_largest_difference"] < 1e-5
    none = evaluate(capsys, place / "uniform", "--float64", "0")
    assert none["float64_images"] is none["float64_difference"] is None
    assert evaluate(capsys, place / "uniform")["float64_images"] == 15  # as many as there are of 16


@pytest.mark.parametrize("run", ["uniform", "plain"])
def test_anomalies_are_those_of_the_scores(run: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(capsys, place / run, "--against", place / "smooth", "inverted", "--draws", "2", "--seed", "3")
    assert list(found["against"]) == [str(place / "smooth"), "inverted"]
    opened = checkpoint.open_run(place / run)
    scoring = run_scoring(opened, draws=2, seed=3)

    def scored(images: torch.Tensor) -> ImageScores:
        return image_scores(class_scores(opened.flow, images, scoring=scoring), images)

    inside, smooth = (
        load_all(str(place / name), image_size=4, channels=1, levels=256)[0].images for name in ("classes", "smooth")
    )
    for name, outside in ((str(place / "smooth"), smooth), ("inverted", inverted(inside, 256))):
        expected = detect(scored(inside), scored(outside))
        got = found["against"][name]
        assert got["labels"] == ("marginal" if run == "uniform" else "none")
        for key, value in expected.to_dict().items():
            assert got[key] == (None if value is None else pytest.approx(value, rel=1e-5)), key
    assert found["against"][str(place / "smooth")]["images_out"] == 6


def test_the_null_class_stays_the_null_class(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(capsys, place / "uniform", "--labels", "null", "--against", "shuffled", "--limit", "9")
    got = found["against"]["shuffled"]
    assert got["labels"] == "null" and got["images_in"] == got["images_out"] == 9
    assert got["bits_in"] == pytest.approx(found["bits_per_dim"])


def test_limit_holds_for_both_sides(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(capsys, place / "plain", "--against", place / "smooth", "--limit", "4")["against"]
    got = found[str(place / "smooth")]
    assert got["images_in"] == got["images_out"] == 4


def test_an_unconditional_score_is_that_of_class_scores(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bits of `against`, by hand."""
    found = evaluate(capsys, place / "plain", "--against", place / "smooth")["against"][str(place / "smooth")]
    smooth = load_all(str(place / "smooth"), image_size=4, channels=1, levels=256)[0].images
    scores = class_scores(checkpoint.open_run(place / "plain").flow, smooth, scoring=Scoring(Measure())).mean
    assert found["bits_out"] == pytest.approx(-float(scores.mean()) / 16 / math.log(2) + 7)
