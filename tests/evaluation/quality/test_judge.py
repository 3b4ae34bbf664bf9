"""Figures of samples: with names, their N, and what held-out images score at the same N."""

import json

import pytest
import torch
from torch import nn

from tarflow.evaluation.quality import judge as module
from tarflow.evaluation.quality.distances import frechet_distance, moments
from tarflow.evaluation.quality.extractors.extractor import Extractor, unit_pixels
from tarflow.evaluation.quality.judge import KINDS, Judge
from tarflow.evaluation.quality.manifolds import manifolds
from tarflow.evaluation.quality.reference import Reference
from tarflow.seeding import seeded_permutation


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x[:, 0].flatten(1) * self.weight


def normal(n, seed, shift=0.0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift


def judge(held_out=150):
    extractor = Extractor("Flat", "pixels", "digest", 4, Flat(), unit_pixels)
    return Judge(extractor, Reference(normal(600, 0), normal(held_out, 1), "digest"))


def test_perfect_samples_score_as_held_out_images_do():
    found = judge().figures_of_features(normal(150, 2))
    assert list(found) == [f"{kind}-Flat" for kind in KINDS]
    for figure in found.values():
        assert figure.samples == figure.floor_samples == 150
        assert figure.value_at_floor_samples == figure.value
    for kind, within in (("FD", 0.12), ("KD", 0.1), ("precision", 0.1), ("recall", 0.1), ("coverage", 0.06)):
        assert found[f"{kind}-Flat"].value == pytest.approx(found[f"{kind}-Flat"].floor, abs=within)
    assert found["KD-Flat"].standard_error is not None and found["FD-Flat"].standard_error is None
    assert json.loads(json.dumps(found["FD-Flat"].to_dict())).keys() == {
        "value",
        "samples",
        "floor",
        "floor_samples",
        "value_at_floor_samples",
    }


def test_bad_samples_are_worse_in_every_figure():
    found = judge().figures_of_features(normal(150, 2, 2.0))
    for kind in KINDS:
        figure = found[f"{kind}-Flat"]
        assert (figure.value > figure.floor) == (kind in module.LOWER_IS_BETTER), kind


def test_with_fewer_held_out_images_the_floor_has_samples_of_its_own_number():
    samples = normal(300, 2)
    found = judge(held_out=100).figures_of_features(samples)["FD-Flat"]
    real = moments(normal(600, 0))
    assert (found.samples, found.floor_samples) == (300, 100)
    assert found.value == pytest.approx(frechet_distance(moments(samples), real))
    assert found.value_at_floor_samples == pytest.approx(frechet_distance(moments(samples[:100]), real))
    assert found.floor == pytest.approx(frechet_distance(moments(normal(100, 1)), real))
    assert found.value < found.value_at_floor_samples  # the bias of fewer samples


def test_the_floor_is_computed_once(monkeypatch):
    ours = judge()
    calls = []
    values = module._values
    monkeypatch.setattr(module, "_values", lambda *a: calls.append(len(a[0])) or values(*a))
    first, second = (ours.figures_of_features(normal(150, seed)) for seed in (2, 3))
    assert calls == [150, 150, 150]
    assert first["FD-Flat"].floor == second["FD-Flat"].floor and first["FD-Flat"].value != second["FD-Flat"].value


def test_samples_are_pixels_of_the_data():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 17, (40, 1, 2, 2), dtype=torch.uint8, generator=generator)
    ours = judge()
    assert ours.figures(pixels, 17) == ours.figures_of_features(pixels.flatten(1).float() / 16)


def test_too_few_are_named():
    with pytest.raises(ValueError, match="samples: expected at least 12 to measure quality, got 11"):
        judge().figures_of_features(normal(11, 0))
    with pytest.raises(ValueError, match="held-out images: expected at least 12 to measure quality, got 7"):
        judge(held_out=7).figures_of_features(normal(30, 0))


def test_the_floor_is_of_a_choice_of_the_held_out_images_and_not_of_the_first():
    """A folder is read in the order of its names, so that the first images may be all of one kind."""
    ours = judge(held_out=300)
    odd = ours.reference.held_out.clone()
    odd[:40] += 6.0
    ours = Judge(ours.extractor, Reference(ours.reference.features, odd, "digest"))
    found = ours.figures_of_features(normal(40, 2))
    first, last = (
        frechet_distance(moments(odd[rows]), ours.reference.moments) for rows in (slice(40), slice(-40, None))
    )
    assert last < found["FD-Flat"].floor < first / 4
    assert found["FD-Flat"].floor_samples == 40
    again = Judge(ours.extractor, ours.reference).figures_of_features(normal(40, 3))
    assert [figure.floor for figure in again.values()] == [figure.floor for figure in found.values()]
    others = ours.figures_of_features(normal(41, 2))
    assert others["FD-Flat"].floor != found["FD-Flat"].floor


def test_neighbourhoods_are_of_as_many_real_images_as_samples():
    ours, samples = judge(), normal(50, 2)
    found = ours.figures_of_features(samples)
    chosen = seeded_permutation(600, "neighbourhoods")[:50]
    expected = manifolds(ours.reference.features[chosen], samples)
    for kind in ("precision", "recall", "density", "coverage"):
        assert found[f"{kind}-Flat"].value == getattr(expected, kind)
    assert expected != manifolds(ours.reference.features, samples) != manifolds(ours.reference.features[:50], samples)
