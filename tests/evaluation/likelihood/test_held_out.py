"""Scores of a run's own held-out images: kept as long as all that they depend on is the same, and of a fair choice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flow_cases import build
from tarflow import storage
from tarflow.checkpoint import Run
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.evaluation.likelihood import held_out
from tarflow.evaluation.likelihood.held_out import HELD_OUT_FILE, held_out_scores, run_scoring
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.run_data import open_held_out
from tarflow.seeding import seeded_permutation


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A model of 16 levels and two folders of twenty images."""
    for folder in ("photos", "others"):
        (tmp_path / folder).mkdir()
        for k in range(20):
            pixels = np.random.default_rng([len(folder), ord(folder[0]), k]).integers(0, 256, (4, 4), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{k:02}.png")
    flow = build("unconditional", torch.float32)
    flow.save_pretrained(tmp_path)
    data = DataConfig(source=str(tmp_path / "photos"), levels=16, held_out_fraction=0.2)
    return Run(tmp_path, flow, RunConfig(flow.config, data, TrainingConfig(steps=1, noise="uniform")))


def scoring_of(run: Run, draws: int = 2, seed: int = 0) -> Scoring:
    return run_scoring(run, draws=draws, seed=seed)


def with_data(run: Run, **fields: Any) -> Run:
    assert run.config.data is not None
    data = dataclasses.replace(run.config.data, **fields)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))


def change(run: Run, what: str) -> tuple[Run, dict[str, Any]]:
    """The run, or what is asked of it, with one thing changed."""
    if what == "weights":
        other = build("unconditional", torch.float32, seed=1)
        other.save_pretrained(run.path)
        return dataclasses.replace(run, flow=other), {}
    if what == "source":
        return with_data(run, source=str(run.path / "others")), {}
    data = {"split_seed": 1, "held_out_fraction": 0.4, "levels": 8}
    if what in data:
        return with_data(run, **{what: data[what]}), {}
    return run, {"seed": {"seed": 1}, "draws": {"draws": 3}}[what]


@pytest.mark.parametrize("what", ["split_seed", "held_out_fraction", "levels", "source", "weights", "seed", "draws"])
def test_kept_scores_are_not_used_where_anything_they_depend_on_has_changed(what: str, run: Run) -> None:
    before = held_out_scores(run, scoring_of(run)).log_prob
    changed, fields = change(run, what)
    scoring = scoring_of(changed, **fields)
    found = held_out_scores(changed, scoring).log_prob
    expected = class_scores(changed.flow, open_held_out(changed).images, scoring=scoring).mean
    assert torch.equal(found, expected)
    assert found.shape != before.shape or not torch.allclose(found, before)


def test_kept_scores_are_used_where_nothing_has_changed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = held_out_scores(run, scoring_of(run)).log_prob
    assert (run.path / HELD_OUT_FILE).is_file() and len(before) == 4
    monkeypatch.setattr(held_out, "class_scores", None)
    assert torch.equal(held_out_scores(run, scoring_of(run)).log_prob, before)


def test_scores_of_several_scorings_are_kept_together_and_the_oldest_go(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "MAX_SCORINGS", 2)
    found = [held_out_scores(run, scoring_of(run, seed=seed)).log_prob for seed in range(3)]
    kept = json.loads((run.path / HELD_OUT_FILE).read_text())["scored"]
    assert [each["scoring"]["seed"] for each in kept] == [2, 1]
    monkeypatch.setattr(held_out, "class_scores", None)
    for seed in (1, 2):
        assert torch.equal(held_out_scores(run, scoring_of(run, seed=seed)).log_prob, found[seed])


def test_of_many_held_out_images_a_choice_is_scored_and_not_the_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_data(run, held_out_fraction=0.6)
    images = open_held_out(run).images
    monkeypatch.setattr(held_out, "MAX_IMAGES", 5)
    found = held_out_scores(run, scoring_of(run)).log_prob
    chosen = seeded_permutation(12, "held-out scores")[:5]
    assert chosen.sort().values.tolist() != list(range(5))
    assert torch.equal(found, class_scores(run.flow, images[chosen], scoring=scoring_of(run)).mean)


def test_where_the_run_cannot_be_written_to_they_are_kept_in_the_cache(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    write = storage.write_text

    def refused(path: Path, text: str) -> None:
        if path.parent == run.path:
            raise PermissionError(13, "Permission denied", str(path))
        write(path, text)

    monkeypatch.setattr(storage, "write_text", refused)
    before = held_out_scores(run, scoring_of(run)).log_prob
    assert not (run.path / HELD_OUT_FILE).exists()
    monkeypatch.setattr(held_out, "class_scores", None)
    assert torch.equal(held_out_scores(run, scoring_of(run)).log_prob, before)
