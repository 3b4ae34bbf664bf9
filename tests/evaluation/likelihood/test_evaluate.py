"""bits/dim on densities with known answers, its standard errors, its measures, and what it refuses."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from tarflow import TarFlow, TarFlowConfig
from tarflow.evaluation.likelihood.evaluate import evaluate_likelihood, noise_standard_error
from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, NoYardstick, fit_yardstick
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure

# One block on two pixels, one a patch, without any dependence: p(x) = N(x_0; 0, 1) N(x_1; SHIFT, exp(2 LOG_SCALE)).
SHIFT, LOG_SCALE = 0.3, -0.8
LEVELS = 3


def under(noise="uniform", std=0.0, **fields):
    """The scoring of images of three levels."""
    return Scoring(Measure(LEVELS, noise, std), **fields)


def known_gaussian():
    config = TarFlowConfig(
        image_size=(1, 2), channels=1, patch_size=1, width=8, head_dim=8, layers=(1,), log_scale_bound=None
    )
    flow = TarFlow(config).double()
    with torch.no_grad():
        flow.blocks[0].proj_out.bias.copy_(torch.tensor([LOG_SCALE, SHIFT], dtype=torch.float64))
    return flow


def known_log_density(x):
    """x (..., 2), in nats."""
    return norm.logpdf(x[..., 0]) + norm.logpdf(x[..., 1], SHIFT, math.exp(LOG_SCALE))


ALL_IMAGES = torch.tensor(list(itertools.product(range(LEVELS), repeat=2)), dtype=torch.uint8).view(-1, 1, 1, 2)


def expected_bits(noise, noise_std=0.0):
    """The mean over all images of the expectation over the noise of bits/dim, by Gauss quadrature."""
    k = np.array(list(itertools.product(range(LEVELS), repeat=2)), dtype=float)
    if noise == "uniform":
        nodes, weights = np.polynomial.legendre.leggauss(12)
        nodes, weights, constant = (nodes + 1) / 2, weights / 2, math.log2(LEVELS / 2)
        place = lambda k, u: 2 * (k + u) / LEVELS - 1  # noqa: E731
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(12)
        weights, constant = weights / weights.sum(), math.log2((LEVELS - 1) / 2)
        place = lambda k, u: 2 * k / (LEVELS - 1) - 1 + noise_std * u  # noqa: E731
    total = 0.0
    for (u, a), (v, b) in itertools.product(zip(nodes, weights, strict=True), repeat=2):
        total -= a * b * known_log_density(place(k, np.array([u, v]))).mean()
    return total / (2 * math.log(2)) + constant


@pytest.mark.parametrize(("noise", "noise_std"), [("uniform", 0.0), ("gaussian", 0.4)])
def test_the_mean_over_draws_is_the_expectation_over_the_noise(noise, noise_std):
    result = evaluate_likelihood(known_gaussian(), ALL_IMAGES, scoring=under(noise, noise_std, draws=300))
    assert result.noise_standard_error < 0.03
    assert abs(result.mean - expected_bits(noise, noise_std)) < 3.5 * result.noise_standard_error


def test_scores_are_the_analytic_density_at_the_noisy_images():
    flow, seen = known_gaussian(), []
    original = flow.log_prob_by_token
    flow.log_prob_by_token = lambda x, y=None: seen.append(x) or original(x, y)
    scores = class_scores(flow, ALL_IMAGES, scoring=under(draws=2), batch_size=4).scores
    x = torch.cat(seen).flatten(1)  # batches of 4, 4 and 1, two draws each
    order = torch.cat([d * 9 + torch.arange(s, min(s + 4, 9)) for s in (0, 4, 8) for d in (0, 1)])
    np.testing.assert_allclose(scores.flatten()[order], known_log_density(x.numpy()), rtol=1e-12)


def test_images_in_bits_are_never_below_the_entropy_that_generated_them():
    # bits/dim bounds the code length: here the pixels are independent and even, so log2 L is the least there can be.
    assert expected_bits("uniform") >= math.log2(LEVELS)


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_noise_does_not_depend_on_the_batch_size(noise):
    flow = known_gaussian()

    def score(batch_size=None, **fields):
        scoring = under(noise, 0.1, **{"draws": 3} | fields)
        return class_scores(flow, ALL_IMAGES, scoring=scoring, batch_size=batch_size).scores

    whole = score()
    for batch_size in (1, 4, 100):
        torch.testing.assert_close(score(batch_size), whole)
    assert (whole[0] != whole[1]).all(), "every draw has noise of its own"
    assert (score(seed=1) != whole).all()
    torch.testing.assert_close(score(draws=4)[:3], whole)  # further draws leave the first ones as they were


def test_standard_errors_cover_the_truth_as_often_as_they_say():
    flow, truth = known_gaussian(), expected_bits("uniform")
    generator = torch.Generator().manual_seed(0)
    covered = noise_covered = 0
    repeats = 150
    all_images = ALL_IMAGES.repeat(2, 1, 1, 1)
    for seed in range(repeats):
        drawn = ALL_IMAGES[torch.randint(9, (36,), generator=generator)]  # from a population of even pixels
        result = evaluate_likelihood(flow, drawn, scoring=under(draws=2, seed=seed))
        covered += abs(result.mean - truth) < 2.03 * result.standard_error  # t of 35 degrees of freedom, 95 %
        # Of fixed images only the noise is random.
        result = evaluate_likelihood(flow, all_images, scoring=under(draws=2, seed=1000 + seed))
        noise_covered += abs(result.mean - truth) < 1.96 * result.noise_standard_error
    for count in (covered, noise_covered):
        assert 0.89 <= count / repeats <= 0.99  # 95 %, less or more 3.4 and 2.2 standard errors of 150 repeats


def test_standard_errors_shrink_with_images_and_with_draws():
    flow = known_gaussian()

    def score(copies, draws):
        images = ALL_IMAGES.repeat(copies, 1, 1, 1)
        return evaluate_likelihood(flow, images, scoring=under(draws=draws))

    few, many = score(20, 2), score(80, 2)
    assert many.standard_error == pytest.approx(few.standard_error / 2, rel=0.1)
    assert many.noise_standard_error == pytest.approx(few.noise_standard_error / 2, rel=0.15)
    drawn = score(20, 32)
    assert drawn.noise_standard_error == pytest.approx(few.noise_standard_error / 4, rel=0.15)
    assert drawn.standard_error > few.standard_error / 2, "more draws do not make up for more images"
    assert math.isnan(score(20, 1).noise_standard_error)
    assert noise_standard_error(torch.tensor([[0.0], [2.0]])) == pytest.approx(1.0)  # √(2 / (2·1))


def test_a_gaussian_noise_model_has_no_bits_per_dim_of_the_data():
    result = evaluate_likelihood(known_gaussian(), ALL_IMAGES, scoring=under("gaussian", 0.05, draws=1))
    values = result.to_dict()
    assert values["measure"] == "density of x + 0.05·ε"
    assert values["bits_per_dim"] is None
    assert values["noisy_bits_per_dim"] == pytest.approx(
        result.nats_per_dim / math.log(2) + math.log2((LEVELS - 1) / 2)
    )
    values = evaluate_likelihood(known_gaussian(), ALL_IMAGES, scoring=under()).to_dict()
    assert values["measure"].startswith("bits/dim of the data")
    assert values["noisy_bits_per_dim"] is None
    assert values["bits_per_dim"] == pytest.approx(values["nats_per_dim"] / math.log(2) + math.log2(LEVELS / 2))
    assert (values["labels"], values["images"], values["draws"]) == ("none", 9, 4)


def test_the_yardstick_is_paired_with_the_model():
    flow = known_gaussian()
    same = GaussianYardstick(
        torch.tensor([0, SHIFT]).double(),
        torch.diag(torch.tensor([1, math.exp(LOG_SCALE)])).double(),
        0.0,
        9,
        Measure(LEVELS),
    )
    result = evaluate_likelihood(flow, ALL_IMAGES, scoring=under(), yardstick=same)
    assert result.yardstick.mean == pytest.approx(result.mean)
    assert result.yardstick.standard_error == pytest.approx(result.standard_error)
    assert abs(result.yardstick.advantage) < 1e-7
    assert result.yardstick.advantage_standard_error < 1e-7

    better = fit_yardstick(ALL_IMAGES, Measure(LEVELS))
    result = evaluate_likelihood(flow, ALL_IMAGES, scoring=under(), yardstick=better)
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert values["advantage"] == pytest.approx(values["gaussian_yardstick"] - values["bits_per_dim"])
    assert values["advantage"] < 0, "a Gaussian fitted to these images beats one that was not"
    assert "Ledoit-Wolf" in values["gaussian_yardstick_note"]
    assert "9 training images" in values["gaussian_yardstick_note"]


def test_without_a_yardstick_the_reason_is_there():
    result = evaluate_likelihood(
        known_gaussian(), ALL_IMAGES, scoring=under(draws=1), yardstick=NoYardstick("too large")
    )
    values = result.to_dict()
    assert values["gaussian_yardstick"] is None
    assert values["advantage"] is None
    assert values["gaussian_yardstick_note"] == "too large"


def test_a_density_that_is_not_finite_is_counted_and_never_averaged_away():
    flow = known_gaussian()
    with torch.no_grad():
        flow.blocks[0].proj_in.weight.fill_(math.nan)
    result = evaluate_likelihood(flow, ALL_IMAGES, scoring=under(draws=1))
    assert result.not_finite == 9
    assert result.to_dict()["bits_per_dim"] is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_progress_counts_images_times_draws():
    seen = []
    arguments = dict(scoring=under(draws=2), batch_size=4)
    evaluate_likelihood(known_gaussian(), ALL_IMAGES, progress=lambda *done: seen.append(done), **arguments)
    assert seen == [(4, 18), (8, 18), (12, 18), (16, 18), (17, 18), (18, 18)]


def test_the_model_is_left_as_it_was_found():
    flow = known_gaussian().train()
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    evaluate_likelihood(flow, ALL_IMAGES, scoring=under(draws=1))
    assert flow.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in flow.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": ALL_IMAGES.float()}, "images: expected at least one"),
        ({"images": ALL_IMAGES[:0]}, "images: expected at least one"),
        ({"images": ALL_IMAGES.view(-1, 1, 2, 1)}, "expected images"),
        ({"scoring": Scoring(Measure(2))}, "images: expected levels 0 to 1, got 2"),
        ({"batch_size": 0}, "batch_size: expected a positive number"),
        ({"batch_size": -1}, "batch_size: expected a positive number"),
        ({"scoring": under(labels="given")}, "expected 'none' for an unconditional model, got 'given'"),
        (
            {"yardstick": fit_yardstick(ALL_IMAGES, Measure(LEVELS, "gaussian", 0.1))},
            "yardstick: expected one fitted in",
        ),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    arguments = {"images": ALL_IMAGES, "scoring": under()} | change
    with pytest.raises(ValueError, match=message):
        evaluate_likelihood(known_gaussian(), arguments.pop("images"), **arguments)


@pytest.mark.parametrize(("field", "value"), [("draws", 0), ("draws", True), ("seed", 0.5)])
def test_a_scoring_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}: expected"):
        under(**{field: value})
