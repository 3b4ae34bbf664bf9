"""The parts of a likelihood add up to it, and float64 is float64."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from flow_cases import build
from tarflow import NULL_CLASS
from tarflow.evaluation.likelihood.evaluate import by_class, by_patch, precision_difference, summary
from tarflow.evaluation.likelihood.scores import class_scores, log_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure

IMAGES = torch.randint(0, 17, (7, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.tensor([2, 0, 0, 2, 2, 0, 2])
UNIFORM = Scoring(Measure(17), draws=3, seed=4)
GAUSSIAN = Scoring(Measure(17, "gaussian", 0.2), draws=3, seed=4)


@pytest.mark.parametrize("scoring", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
def test_classes_are_scored_as_if_they_were_alone(scoring: Scoring) -> None:
    flow = build("conditional", torch.float64)
    found = class_scores(flow, IMAGES, LABELS, scoring=scoring)
    parts = by_class(found, LABELS, ("cat", "dog", "owl"))
    assert [(name, part.images) for name, part in parts.items()] == [("cat", 3), ("owl", 4)]
    assert sum(part.mean * part.images for part in parts.values()) / 7 == pytest.approx(summary(found).mean)
    # By hand, from the scores of the class.
    scores = found.scores[:, LABELS == 2].mean(dim=0)
    levels_per_unit = 17 / 2 if scoring is UNIFORM else 8
    bits = -scores / 16 / math.log(2) + math.log2(levels_per_unit)
    assert parts["owl"].mean == pytest.approx(float(bits.mean()))
    assert parts["owl"].standard_error == pytest.approx(float(bits.std()) / 2)


def test_images_without_a_label_are_a_group_of_their_own() -> None:
    flow = build("conditional", torch.float64)
    labels = torch.where(torch.arange(7) < 2, NULL_CLASS, LABELS)
    found = class_scores(flow, IMAGES, labels, scoring=UNIFORM)
    assert found.scoring.labels == "marginal"
    parts = by_class(found, labels, ("cat", "dog", "owl"))
    assert {name: part.images for name, part in parts.items()} == {"no label": 2, "cat": 2, "owl": 3}
    assert math.isnan(by_class(found, torch.arange(7), tuple("abcdefg"))["a"].standard_error)


def test_labels_that_do_not_fit_are_refused() -> None:
    found = class_scores(build("unconditional", torch.float64), IMAGES, scoring=UNIFORM)
    with pytest.raises(ValueError, match="labels: expected 7, one an image, got 3"):
        by_class(found, LABELS[:3], ("cat", "dog", "owl"))
    with pytest.raises(ValueError, match="labels: expected less than 2, the number of names, got 2"):
        by_class(found, LABELS, ("cat", "dog"))


@pytest.mark.parametrize("scoring", [UNIFORM, GAUSSIAN], ids=["uniform", "gaussian"])
@pytest.mark.parametrize(
    ("case", "policy"), [("conditional", "given"), ("conditional", "marginal"), ("unconditional", None)]
)
def test_patches_have_the_score_as_their_mean(case: str, policy: Any, scoring: Scoring) -> None:
    flow = build(case, torch.float64)
    how = dataclasses.replace(scoring, labels=policy)
    found = class_scores(flow, IMAGES, LABELS, scoring=how, maps=True, batch_size=3)
    patches = by_patch(found)
    assert patches.shape == (2, 2) and patches.dtype == torch.float64
    assert float(patches.mean()) == pytest.approx(summary(found).mean)
    assert float(patches.std()) > 1e-3  # they differ


def test_float64_is_compared_with_float32_in_the_same_noise() -> None:
    flow = build("conditional", torch.float32)
    found = class_scores(flow, IMAGES, LABELS, scoring=UNIFORM)
    difference = precision_difference(flow, found, IMAGES, LABELS, count=4)
    exact = class_scores(build("conditional", torch.float32).double(), IMAGES, LABELS, scoring=UNIFORM)
    gap = (exact.scores - found.scores)[:, :4] / (16 * math.log(2))
    assert difference.images == 4
    assert difference.mean == pytest.approx(float(gap.mean())) != 0
    assert difference.largest == pytest.approx(float(gap.abs().max()))
    assert 0 < difference.largest < 1e-5
    assert flow.dtype == torch.float32, "the flow is left as it was"
    assert precision_difference(flow, found, IMAGES, LABELS, count=100).images == 7


def test_weights_in_float64_lose_nothing() -> None:
    flow = build("unconditional", torch.float64)
    found = class_scores(flow, IMAGES, scoring=UNIFORM)
    assert precision_difference(flow, found, IMAGES, count=3).to_dict() == {
        "float64_images": 3,
        "float64_difference": pytest.approx(0, abs=1e-12),
        "float64_largest_difference": pytest.approx(0, abs=1e-12),
    }


def test_a_score_that_is_wrong_in_float32_is_noticed() -> None:
    """Weights that bf16 has rounded differ from themselves in float64 by their arithmetic alone: not by much."""
    flow = build("unconditional", torch.float32)
    found = class_scores(flow, IMAGES, scoring=UNIFORM)
    found.log_prob.add_(16 * math.log(2))  # one bit a dimension
    assert precision_difference(flow, found, IMAGES, count=3).mean == pytest.approx(-1, abs=1e-4)
    assert log_likelihood(flow, torch.zeros(1, 1, 4, 4)).shape == (1,)
