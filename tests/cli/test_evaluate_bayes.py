"""`tarflow evaluate` of a conditional model on labelled images says how well it classifies."""

from __future__ import annotations

import json
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
from tarflow.data.load import load
from tarflow.evaluation.likelihood.bayes import BAYES_KEYS, classification
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes and without, and a conditional and an unconditional run."""
    root = tmp_path_factory.mktemp("bayes")
    generator = np.random.default_rng(0)
    for folder in ("classes/a", "classes/b", "classes/c", "plain"):
        (root / folder).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(generator.integers(0, 256, (4, 4), dtype=np.uint8)).save(root / folder / f"{i}.png")
    for name, case in (("conditional", "conditional"), ("unconditional", "unconditional")):
        flow = build(case, torch.float32)
        flow.save_pretrained(root / name)
        data = DataConfig(source=str(root / "classes"), class_names=tuple("abc"[: flow.config.num_classes]))
        write_config(root / name, RunConfig(flow.config, data, TrainingConfig(steps=1, noise_std=0.3)))
    return root


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "--device", "cpu"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def test_the_figures_are_those_of_the_classifier(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = evaluate(capsys, place / "conditional", "--split", "train", "--draws", "3", "--seed", "2")
    train = load(str(place / "classes")).train
    assert train.labels is not None
    flow = checkpoint.open_run(place / "conditional").flow
    scoring = Scoring(Measure(256, "gaussian", 0.3), draws=3, seed=2)
    found = class_scores(flow, train.images, scoring=scoring, all_classes=True)
    expected = classification(found, train.labels).to_dict()
    assert {key: values[key] for key in BAYES_KEYS} == pytest.approx(expected)
    assert 0 < values["bayes_accuracy"] < 1


def test_they_are_null_where_there_is_nothing_to_classify(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = dict.fromkeys(BAYES_KEYS)
    for arguments in (
        [place / "conditional", "--no-classify"],
        [place / "conditional", "--data", place / "plain"],
        [place / "unconditional"],
    ):
        values = evaluate(capsys, *arguments)
        assert {key: values[key] for key in BAYES_KEYS} == nothing
        assert values["noisy_bits_per_dim"] is not None
