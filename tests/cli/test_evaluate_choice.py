"""Which images `tarflow evaluate` scores: a split, a seeded choice of it, or all of what was never trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flow_cases import build
from tarflow.checkpoint import open_run, write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.data.load import ImageSet
from tarflow.evaluation.likelihood import evaluation
from tarflow.evaluation.likelihood.scores import ClassScores
from tarflow.run_data import open_all, open_splits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images without a split, ten others, and ten in a split of their own; and a run on the first."""
    root = tmp_path_factory.mktemp("choice")
    for folder, count in (("photos", 40), ("others", 10), ("split/train", 6), ("split/test", 4)):
        (root / folder).mkdir(parents=True)
        for k in range(count):
            pixels = np.random.default_rng([len(folder), k]).integers(0, 256, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{k:02}.png")
    flow = build("unconditional", torch.float32)
    flow.save_pretrained(root / "run")
    data = DataConfig(source=str(root / "photos"), held_out_fraction=0.25, split_seed=3)
    write_config(root / "run", RunConfig(flow.config, data, TrainingConfig(steps=1, noise="uniform")))
    return root


@pytest.fixture
def evaluate(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What the command prints, and which images it scored."""
    seen: list[Tensor] = []
    real = evaluation.class_scores

    def noted(flow: Any, images: Tensor, *rest: Any, **options: Any) -> ClassScores:
        seen.append(images)
        return real(flow, images, *rest, **options)

    monkeypatch.setattr(evaluation, "class_scores", noted)

    def run(*options: str) -> tuple[dict[str, Any], Tensor]:
        capsys.readouterr()
        arguments = ["evaluate", str(place / "run"), "--draws", "1", "--float64", "0", "--device", "cpu"]
        assert main([*arguments, *options]) == 0
        return json.loads(capsys.readouterr().out), seen[-1]

    return run


def test_a_split_of_the_runs_own_data_is_that_of_its_training(evaluate: Any, place: Path) -> None:
    splits = open_splits(open_run(place / "run"))
    everything = open_all(open_run(place / "run"), str(place / "photos"))
    for options, name, images in (
        ((), "held-out", splits.held_out),
        (("--split", "train"), "train", splits.train),
        (("--split", "all"), "all", everything),
    ):
        found, scored = evaluate(*options)
        assert found["split"] == name and found["images"] == len(images) == len(scored)
        assert torch.equal(scored, images.images)


def test_a_limit_is_a_choice_by_the_seed_and_not_the_first(evaluate: Any, place: Path) -> None:
    held_out: ImageSet = open_splits(open_run(place / "run")).held_out
    scored = []
    for seed in (0, 1):
        found, images = evaluate("--limit", "4", "--seed", str(seed))
        assert found["images"] == 4 and found["seed"] == seed
        assert torch.equal(images, held_out.choice(4, seed).images)
        scored.append(images)
    assert not torch.equal(*scored) and not torch.equal(scored[0], held_out.images[:4])
    assert evaluate("--limit", "99")[0]["images"] == len(held_out) == 10


def test_other_data_are_scored_whole_unless_they_have_a_split(evaluate: Any, place: Path) -> None:
    found, scored = evaluate("--data", str(place / "others"))
    assert (found["split"], len(scored)) == ("all", 10)
    assert found["gaussian_yardstick"] is None and "no training images of its own" in found["gaussian_yardstick_note"]
    found, scored = evaluate("--data", str(place / "split"))
    assert (found["split"], len(scored)) == ("held-out", 4)
    assert found["gaussian_yardstick"] is not None
    assert "fitted to 6 training images" in found["gaussian_yardstick_note"]
