"""Scores of a run's own held-out images: kept as long as all that they depend on is the same, and of a fair choice."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flow_cases import build
from tarflow.checkpoint import Run
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.data.batches import seeded_permutation
from tarflow.evaluation.likelihood import held_out
from tarflow.evaluation.likelihood.held_out import (
    HELD_OUT_FILE,
    Scoring,
    held_out_scores,
    percentiles,
    ranks,
    score_pixels,
)
from tarflow.evaluation.run_data import open_held_out

SCORING = Scoring("none", None, 2, 0)


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


def with_data(run: Run, **fields: Any) -> Run:
    assert run.config.data is not None
    data = dataclasses.replace(run.config.data, **fields)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, data=data))


def change(run: Run, what: str) -> tuple[Run, Scoring]:
    """The run, or what is asked of it, with one thing changed."""
    if what == "weights":
        other = build("unconditional", torch.float32, seed=1)
        other.save_pretrained(run.path)
        return dataclasses.replace(run, flow=other), SCORING
    if what == "source":
        return with_data(run, source=str(run.path / "others")), SCORING
    data = {"split_seed": 1, "held_out_fraction": 0.4, "levels": 8}
    if what in data:
        return with_data(run, **{what: data[what]}), SCORING
    return run, dataclasses.replace(SCORING, **{"seed": {"seed": 1}, "draws": {"draws": 3}}[what])


@pytest.mark.parametrize("what", ["split_seed", "held_out_fraction", "levels", "source", "weights", "seed", "draws"])
def test_kept_scores_are_not_used_where_anything_they_depend_on_has_changed(what: str, run: Run) -> None:
    before = held_out_scores(run, SCORING).scores
    changed, scoring = change(run, what)
    found = held_out_scores(changed, scoring).scores
    expected = score_pixels(changed, open_held_out(changed).images, scoring)
    assert torch.equal(found, expected)
    assert found.shape != before.shape or not torch.allclose(found, before)


def test_kept_scores_are_used_where_nothing_has_changed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = held_out_scores(run, SCORING).scores
    assert (run.path / HELD_OUT_FILE).is_file() and len(before) == 4
    monkeypatch.setattr(held_out, "score_pixels", None)
    assert torch.equal(held_out_scores(run, SCORING).scores, before)


def test_of_many_held_out_images_a_choice_is_scored_and_not_the_first(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_data(run, held_out_fraction=0.6)
    images = open_held_out(run).images
    monkeypatch.setattr(held_out, "MAX_IMAGES", 5)
    found = held_out_scores(run, SCORING).scores
    chosen = seeded_permutation(12, "held-out scores")[:5]
    assert chosen.sort().values.tolist() != list(range(5))
    assert torch.equal(found, score_pixels(run, images[chosen], SCORING))


def test_places_of_equal_scores_are_the_best_of_theirs_and_percentiles_halve_them() -> None:
    scores = np.array([2.0, 1.0, 2.0, -math.inf, 5.0, 1.0])
    assert ranks(scores).tolist() == [1 + sum(other > score for other in scores) for score in scores]
    reference = [1.0, 1.0, 2.0, 3.0]
    by_hand = [100 * (sum(r < s for r in reference) + sum(r == s for r in reference) / 2) / 4 for s in scores]
    assert percentiles(scores, reference).tolist() == by_hand
