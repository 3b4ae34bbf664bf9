"""What commands that draw samples share: labels in turn, pixels at the levels of the data, and their judges."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from report_cases import make_run
from tarflow import NULL_CLASS
from tarflow.checkpoint import Run, open_run
from tarflow.cli.quality import compared_by_pixels
from tarflow.data.load import Splits, load
from tarflow.drawing import Sampler, labels_in_turn
from tarflow.evaluation.quality.classifier import fit_classifier
from tarflow.measure import Measure
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.sample import sample
from tarflow.sampling.setting import Setting


@pytest.fixture(scope="module", params=["gaussian", "uniform"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(make_run(tmp_path_factory.mktemp("runs") / "run", classes=True, noise=request.param))


def test_labels_go_through_the_classes_in_turn(run: Run) -> None:
    for names, expected in (
        ((), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]),
        (("3", "8", "null"), [3, 8, NULL_CLASS] * 4 + [3]),
        (("7",), [7] * 13),
    ):
        labels = labels_in_turn(run, names, 13)
        assert labels is not None and labels.tolist() == expected


def test_pixels_are_samples_at_the_levels_of_the_data(run: Run) -> None:
    y = labels_in_turn(run, (), 12)
    for setting, seed in ((Setting(), 0), (Setting(Guidance(1.0), run.sigma), 3)):
        found = Sampler(run, "sequential", 5).pixels(12, y, setting, seed)
        x = sample(run.flow, 12, y, setting.guidance, seed, denoise=setting.denoise, solver="sequential")
        assert found.dtype == torch.uint8 and int(found.max()) <= 16
        assert torch.equal(found, Measure(17, run.noise, 1.0).pixels(x))


@pytest.fixture(scope="module")
def few() -> Splits:
    """Three hundred digits to learn from and ninety others."""
    digits = load("digits", levels=17)
    few = dataclasses.replace(digits, train=digits.train.subset(range(300)), held_out=digits.held_out.subset(range(90)))
    assert few.train.labels is not None and few.held_out.labels is not None
    return few


def test_copies_of_training_images_are_right_varied_and_not_new(few: Splits) -> None:
    assert few.train.labels is not None and few.held_out.labels is not None
    chosen = few.train.labels.argsort(stable=True)[::3]  # a third of each class
    found = compared_by_pixels(few.train.images[chosen], few.train.labels[chosen], few)
    assert found["notes"] == [] and found["novelty"] == 0
    assert found["agreement"] > 0.98 and found["diversity"] == pytest.approx(1, abs=0.1)
    judge = fit_classifier(few.train.images, few.train.labels, few.held_out.images, few.held_out.labels)
    assert found["classifier_accuracy"] == judge.accuracy < 1 and found["classifier"] == judge.name


def test_held_out_images_are_as_new_as_held_out_images(few: Splits, tmp_path: Path) -> None:
    assert few.held_out.labels is not None
    found = compared_by_pixels(few.held_out.images, few.held_out.labels, few)
    assert found["novelty"] == 1 and found["agreement"] == found["classifier_accuracy"]
    unlabelled = compared_by_pixels(few.held_out.images, None, few)
    assert unlabelled["novelty"] == 1 and unlabelled["agreement"] is None
    assert unlabelled["notes"] == ["agreement and diversity: there are no classes"]
    assert compared_by_pixels(few.train.images[:50], None, few)["novelty"] == 0
