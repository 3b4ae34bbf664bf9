"""The most and the least likely images, and their maps, are those of the scores; those without a score come last."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from subject_cases import SETTINGS, strips_of
from tarflow.checkpoint import open_run
from tarflow.evaluation.likelihood.patch_maps import heat_map
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import to_8bit
from tarflow.report import likelihood
from tarflow.report.subject import DRAWS, Subject, Unavailable


def test_what_has_no_likelihood_is_the_least_likely_and_no_image_is_in_both_rows(exact: Subject) -> None:
    exact.scores = torch.tensor([3.0, torch.nan, 1.0, 2.0, 5.0])  # type: ignore[misc]
    assert [ends.tolist() for ends in likelihood._ends(exact, 2)] == [[4, 0], [1, 2]]
    assert [ends.tolist() for ends in likelihood._ends(exact, 9)] == [[4, 0], [1, 2]]
    exact.scores = torch.tensor([3.0])  # type: ignore[misc]
    with pytest.raises(Unavailable, match="Only one image"):
        likelihood._ends(exact, 2)


@pytest.mark.parametrize("kind", ["noisy", "exact"])
def test_rows_of_extremes_and_maps_are_those_images_in_their_own_noise(kind: str, runs: dict[str, Path]) -> None:
    subject = Subject(open_run(runs[kind]), SETTINGS)
    order = subject.scores.argsort(descending=True, stable=True)
    rows = strips_of(likelihood.extremes(subject))
    images = subject.held_out.images
    assert torch.equal(rows["most likely"].images, to_8bit(images[order[:4]], 17))
    assert torch.equal(rows["least likely"].images, to_8bit(images[order.flip(0)[:4]], 17))

    chosen = torch.cat([order[:2], order.flip(0)[:2]])
    labels = subject.held_out.labels if kind == "noisy" else None
    scoring = Scoring(subject.run.measure, DRAWS, 5)
    every = class_scores(subject.run.flow, images, labels, scoring=scoring, maps=True).maps
    assert every is not None
    torch.testing.assert_close(every.sum(dim=(1, 2)), subject.scores, rtol=1e-5, atol=1e-3)
    patches = every[chosen]
    centre = float(patches.median())
    span = float((patches - centre).abs().quantile(0.9))
    expected = [
        heat_map(p, to_8bit(images[k], 17), centre=centre, span=span) for p, k in zip(patches, chosen, strict=True)
    ]
    found = strips_of(likelihood.maps(subject))["map"].images
    assert (found.int() - torch.stack(expected).int()).abs().max() <= 1


def test_scores_of_labelled_images_are_those_of_their_labels(noisy: Subject) -> None:
    assert torch.allclose(noisy.scores, noisy.likelihoods[0].scores.mean(dim=0))
    assert [found.scoring.labels for found in noisy.likelihoods] == ["given", "marginal"]
    assert not torch.allclose(noisy.scores, noisy.likelihoods[1].scores.mean(dim=0))
