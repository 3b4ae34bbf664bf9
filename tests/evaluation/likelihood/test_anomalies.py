"""AUROC against scikit-learn, each detector by hand, and what it takes to fool the first of them."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tarflow.evaluation.likelihood.anomalies import Anomalies, ImageScores, auroc, code_bits, inverted, shuffled
from tarflow.evaluation.likelihood.anomalies import detect as detect_scored
from tarflow.measure import Measure


def detect(inside: Tensor, outside: Tensor, inside_images: Tensor, outside_images: Tensor) -> Anomalies:
    """Of scores and the images that have them."""
    pairs = ((inside, inside_images), (outside, outside_images))
    ours, theirs = (ImageScores(scores.double(), code_bits(x), Measure(), 64) for scores, x in pairs)
    return detect_scored(ours, theirs)


def of(found: Anomalies, name: str) -> float:
    return found.detections[name].auroc  # type: ignore[index]


def drawn(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("digits", [6, 0], ids=["no ties", "many ties"])
@pytest.mark.parametrize(("n", "m"), [(30, 20), (3, 40), (1, 1), (1, 9)])
def test_auroc_is_that_of_scikit_learn(n: int, m: int, digits: int) -> None:
    inside, outside = (drawn(n, 0) + 0.5).round(decimals=digits), drawn(m, 1).round(decimals=digits)
    truth = np.r_[np.ones(n), np.zeros(m)]
    expected = roc_auc_score(truth, torch.cat([inside, outside]).numpy())
    assert auroc(inside, outside).auroc == pytest.approx(expected)
    assert auroc(outside, inside).auroc == pytest.approx(1 - expected)


def test_its_standard_error_is_the_scatter_of_repeated_draws() -> None:
    found = [auroc(drawn(40, seed) + 0.7, drawn(60, 1000 + seed)) for seed in range(300)]
    scatter = float(np.std([each.auroc for each in found]))
    assert np.mean([each.standard_error for each in found]) == pytest.approx(scatter, rel=0.12)
    assert math.isnan(auroc(drawn(1, 0), drawn(9, 0)).standard_error)


def test_what_is_told_apart_without_an_error_has_no_standard_error_of_0() -> None:
    for inside, outside, share in ((drawn(9, 0) + 50, drawn(9, 1), 1), (drawn(9, 0) - 50, drawn(9, 1), 0)):
        found = auroc(inside, outside)
        assert found.auroc == share and math.isnan(found.standard_error)
    alike = auroc(torch.ones(5), torch.ones(4))
    assert alike.auroc == 0.5 and math.isnan(alike.standard_error)
    pixels = images(9, 0)
    printed = detect(drawn(9, 0) + 50, drawn(9, 1), pixels, pixels).to_dict()
    assert printed["auroc_likelihood"] == 1 and printed["auroc_likelihood_standard_error"] is None


def images(count: int, seed: int, levels: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, levels, (count, 1, 8, 8), generator=generator).to(torch.uint8)


def test_code_bits_are_short_for_what_is_simple() -> None:
    flat, noise = torch.full((1, 3, 16, 16), 7, dtype=torch.uint8), images(1, 0)
    assert float(code_bits(flat)) < 8 * 40
    assert float(code_bits(noise)) >= 8 * 60  # 64 bytes that cannot be shortened
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    raw = 8 * len(zlib.compress(ramp.numpy().tobytes(), 9))
    assert float(code_bits(ramp)) < raw / 2  # PNG's differences see what zlib does not
    odd = torch.zeros(2, 4, 4, 4, dtype=torch.uint8)  # four channels, which PNG has not
    assert code_bits(odd).tolist() == [8.0 * len(zlib.compress(bytes(64), 9))] * 2


def test_each_detector_by_hand() -> None:
    inside, outside = torch.tensor([-10.0, -12.0, -11.0]), torch.tensor([-9.0, -30.0])
    first, second = images(3, 0), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    found = detect(inside, outside, first, second)
    assert of(found, "likelihood") == pytest.approx(roc(inside, outside))
    code = code_bits(first), code_bits(second)
    saved = [scores / math.log(2) + bits for scores, bits in zip((inside, outside), code, strict=True)]
    assert of(found, "complexity") == pytest.approx(roc(*saved))
    others = torch.tensor([-11.5, -10.5, -11.0])
    assert of(found, "typicality") == pytest.approx(roc(-(inside - others).abs(), -(outside + 11.0).abs()))
    printed = found.to_dict()
    assert (printed["images_in"], printed["images_out"]) == (3, 2)
    assert printed["bits_in"] == pytest.approx(11 / 64 / math.log(2) + 7)
    assert printed["bits_out"] == pytest.approx(19.5 / 64 / math.log(2) + 7)
    assert printed["code_bits_in"] == pytest.approx(float(code[0].mean()) / 64)
    assert printed["auroc_likelihood"] == of(found, "likelihood")


def roc(inside: Tensor, outside: Tensor) -> float:
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    return float(roc_auc_score(truth, torch.cat([inside, outside]).numpy()))


def test_simple_images_fool_the_likelihood_and_not_its_corrections() -> None:
    """A model that scores an image by its code, as models do: flat images are likely, and typical of nothing."""
    belongs, flat = images(40, 0, levels=64), torch.full((40, 1, 8, 8), 9, dtype=torch.uint8)
    inside = -0.9 * code_bits(belongs) * math.log(2) + drawn(40, 0)
    outside = -1.5 * code_bits(flat) * math.log(2) + drawn(40, 1)
    found = detect(inside, outside, belongs, flat)
    assert of(found, "likelihood") == 0
    assert of(found, "complexity") == 1
    assert of(found, "typicality") == 1


def test_what_is_not_finite_is_the_least_likely() -> None:
    inside, outside = torch.tensor([-10.0, -12.0]), torch.tensor([-math.inf, math.nan])
    found = detect(inside, outside, images(2, 0), images(2, 1))
    assert of(found, "likelihood") == of(found, "typicality") == 1
    assert found.to_dict()["bits_out"] is None and found.to_dict()["bits_in"] is not None


def test_sets_that_are_made_of_others() -> None:
    pixels = images(3, 0, levels=17)
    assert torch.equal(inverted(inverted(pixels, 17), 17), pixels) and int(inverted(pixels, 17).max()) <= 16
    colours = torch.stack([pixels[:, 0], pixels[:, 0], 16 - pixels[:, 0]], dim=1)
    moved = shuffled(colours, 17, seed=1)
    assert not torch.equal(moved, colours) and torch.equal(shuffled(colours, 17, seed=1), moved)
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, 0] + moved[:, 2], torch.full((3, 8, 8), 16))
    for before, after in zip(colours, moved, strict=True):
        assert torch.equal(before[0].flatten().sort().values, after[0].flatten().sort().values)


def test_scores_and_images_have_to_fit() -> None:
    with pytest.raises(ValueError, match="scores: expected as many as images, .* got 3 scores of 2 images"):
        detect(torch.zeros(2), torch.zeros(3), images(2, 0), images(2, 0))
    with pytest.raises(ValueError, match="one at least, got 0 scores"):
        detect(torch.zeros(0), torch.zeros(2), images(0, 0), images(2, 0))


def test_the_typicality_of_an_image_that_belongs_is_by_the_others_alone() -> None:
    """Of two that are 2 apart each is 2 from the other, and 1 from a mean that it has pulled half of the way."""
    inside, outside = torch.tensor([-10.0, -12.0]), torch.tensor([-9.5])  # 1.5 from the mean of both
    assert of(detect(inside, outside, images(2, 0), images(1, 1)), "typicality") == 0
    nearer = detect(inside, torch.tensor([-8.9]), images(2, 0), images(1, 1))  # 2.1 from it
    assert of(nearer, "typicality") == 1
    with_a_failure = detect(torch.tensor([-10.0, -12.0, math.nan]), outside, images(3, 0), images(1, 1))
    assert of(with_a_failure, "typicality") == 0, "what is not finite pulls nothing"


@pytest.mark.parametrize(("n", "m"), [(3, 40), (40, 3), (12, 12)])
def test_its_standard_error_by_hand(n: int, m: int) -> None:
    inside, outside = (drawn(n, 0) + 0.5).round(decimals=1), drawn(m, 1).round(decimals=1)
    pairs = (inside[:, None] > outside).double() + 0.5 * (inside[:, None] == outside).double()
    variance = float(pairs.mean(dim=1).var()) / n + float(pairs.mean(dim=0).var()) / m
    assert auroc(inside, outside).standard_error == pytest.approx(math.sqrt(variance))
