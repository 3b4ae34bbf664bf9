"""The importance-weighted bound against the probability of the pixels, where that is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from flow_cases import randomise
from tarflow import TarFlow, TarFlowConfig
from tarflow.evaluation.likelihood.evaluate import importance_bound, log_mean, summary
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure

LEVELS = 3
PIXELS = TarFlowConfig(
    image_size=(1, 2), channels=1, patch_size=1, width=8, head_dim=8, layers=(1, 1), log_scale_bound=None
)
ALL_IMAGES = torch.tensor(list(itertools.product(range(LEVELS), repeat=2)), dtype=torch.uint8).view(-1, 1, 1, 2)


def gaussian() -> TarFlow:
    """Two independent pixels: N(0, 1) and N(0.3, exp(-1.6)), by one block that flips and one that does nothing."""
    flow = TarFlow(PIXELS).double()
    with torch.no_grad():
        flow.blocks[1].proj_out.bias.zero_()
        flow.blocks[0].proj_out.bias.copy_(torch.tensor([-0.8, 0.3], dtype=torch.float64))
    return flow


def gaussian_probability() -> Tensor:
    """P(k) of every image: differences of the normal distribution function at the edges of the pixels."""
    edges = 2 * np.arange(LEVELS + 1) / LEVELS - 1
    first, second = np.diff(norm.cdf(edges)), np.diff(norm.cdf(edges, 0.3, math.exp(-0.8)))
    return torch.tensor([first[i] * second[j] for i, j in itertools.product(range(LEVELS), repeat=2)])


def dependent() -> TarFlow:
    """Two pixels, of which each says something about the other."""
    return randomise(TarFlow(PIXELS), 3).double()


@torch.no_grad()
def enumerated_probability(flow: TarFlow) -> Tensor:
    """P(k) of every image by quadrature of the density over its pixels' intervals."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    u, w = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
    grid, area = torch.cartesian_prod(u, u), torch.cartesian_prod(w, w).prod(dim=1)
    found = []
    for image in ALL_IMAGES:
        x = 2 * (image.flatten() + grid) / LEVELS - 1
        found.append((area * flow.log_prob(x.view(-1, 1, 1, 2)).exp()).sum() * (2 / LEVELS) ** 2)
    return torch.stack(found)


KNOWN = {"gaussian": (gaussian, gaussian_probability), "dependent": (dependent, None)}


@pytest.mark.parametrize("name", KNOWN)
def test_it_rises_to_the_probability_of_the_pixels(name: str) -> None:
    make, formula = KNOWN[name]
    flow = make()
    probability = formula() if formula else enumerated_probability(flow)
    assert 0 < float(probability.sum()) < 1 + 1e-9  # the rest lies outside of the pixels' range
    exact = -float(probability.log2().mean()) / 2
    images = ALL_IMAGES.repeat(8, 1, 1, 1)  # each with noise of its own
    found = class_scores(flow, images, scoring=Scoring(Measure(LEVELS), draws=256))
    bound = importance_bound(found)
    assert bound is not None and bound.draws == 256
    assert bound.mean == pytest.approx(exact, abs=0.01)
    assert summary(found).mean > exact + 0.02, "the plain bound is loose here, or else this shows nothing"
    values = list(bound.curve.values())
    assert list(bound.curve) == [2**k for k in range(9)]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(values)) and values[0] > values[-1] + 0.02
    assert values[0] == pytest.approx(summary(found).mean) and values[-1] == pytest.approx(bound.mean)
    assert values[3] > exact  # a bound of the bits from above


def test_the_quadrature_is_that_of_the_formula() -> None:
    torch.testing.assert_close(enumerated_probability(gaussian()), gaussian_probability(), rtol=1e-10, atol=0)


def test_draws_that_are_no_power_of_two_all_count() -> None:
    found = class_scores(gaussian(), ALL_IMAGES, scoring=Scoring(Measure(LEVELS), draws=6))
    bound = importance_bound(found)
    assert bound is not None and list(bound.curve) == [1, 2, 4]
    by_hand = -(found.scores.exp().mean(dim=0).log() / 2 / math.log(2)).mean() + math.log2(LEVELS / 2)
    assert bound.mean == pytest.approx(float(by_hand))
    by_image = -(found.scores.exp().mean(dim=0).log() / 2 / math.log(2))
    assert bound.standard_error == pytest.approx(float(by_image.std()) / 3)


def test_one_draw_is_the_plain_bound() -> None:
    found = class_scores(gaussian(), ALL_IMAGES, scoring=Scoring(Measure(LEVELS), draws=1))
    bound = importance_bound(found)
    assert bound is not None
    assert bound.to_dict() == {
        "importance_bits_per_dim": pytest.approx(summary(found).mean),
        "importance_standard_error": pytest.approx(summary(found).standard_error),
        "importance_curve": {"1": pytest.approx(summary(found).mean)},
    }


def test_noisy_images_have_no_such_bound() -> None:
    found = class_scores(gaussian(), ALL_IMAGES, scoring=Scoring(Measure(LEVELS, "gaussian", 0.1)))
    assert importance_bound(found) is None


def test_no_overflow() -> None:
    assert log_mean(torch.tensor([[-1e5], [-1e5]])).item() == pytest.approx(-1e5)
    assert log_mean(torch.tensor([[1e5], [-1e5]])).item() == pytest.approx(1e5 - math.log(2))
