"""The flow as a classifier: against the posterior of a flow whose densities are known, and calibration by hand."""

import math

import pytest
import torch
from torch import Tensor

import flow_cases
from tarflow import TarFlow, TarFlowConfig
from tarflow.evaluation.likelihood.bayes import (
    BAYES_KEYS,
    BayesClassification,
    bayes_classifier,
    classification,
    expected_calibration_error,
    log_posterior,
)
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure
from tarflow.seeding import seeded_generator

CONDITIONAL = flow_cases.build("conditional")
SHIFTS = (-0.8, 0.1, 0.7)


def known_flow() -> TarFlow:
    """Two one-pixel patches, three classes: x_0 ~ N(0, 1) and x_1 ~ N(shift_y, 1), whatever x_0 is.

    Without layers a block is h = proj_in(x_0) + position + class, out = proj_out(h): only the class is let through.
    """
    config = TarFlowConfig(
        image_size=(1, 2), channels=1, patch_size=1, width=8, head_dim=8, layers=(1,), num_classes=3
    )  # fmt: skip
    flow = TarFlow(config).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
        block = flow.blocks[0]
        assert block.embedding.classes is not None
        block.embedding.classes[:, 0] = torch.tensor(SHIFTS, dtype=torch.float64)
        block.proj_out.weight[1, 0] = 1.0  # log-scale first, then the shift
    return flow


def classified(
    flow: TarFlow, images: Tensor, labels: Tensor, scoring: Scoring, prior: Tensor | None = None
) -> BayesClassification:
    return classification(class_scores(flow, images, labels, scoring=scoring, all_classes=True), labels, prior=prior)


def known_posterior(x: Tensor, prior: Tensor | None = None) -> Tensor:
    """p(y|x) from the normal densities, (B, 3)."""
    shifts = torch.tensor(SHIFTS, dtype=torch.float64)
    densities = torch.exp(-0.5 * (x[:, 0, 0, 1:].double() - shifts) ** 2)
    joint = densities if prior is None else densities * prior
    return joint / joint.sum(dim=1, keepdim=True)


def test_the_posterior_of_known_densities() -> None:
    flow = known_flow()
    x = flow_cases.images(flow, 50)
    prior = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64)
    flow_cases.assert_close(log_posterior(flow, x).exp(), known_posterior(x))
    flow_cases.assert_close(log_posterior(flow, x, prior=prior).exp(), known_posterior(x, prior))
    assert torch.equal(bayes_classifier(flow, x), known_posterior(x).argmax(dim=1))
    assert not torch.equal(bayes_classifier(flow, x), bayes_classifier(flow, x, prior=prior))
    assert set(bayes_classifier(flow, x).tolist()) == {0, 1, 2}


def test_a_class_without_prior_is_never_chosen() -> None:
    x = flow_cases.images(CONDITIONAL, 20)
    posterior = log_posterior(CONDITIONAL, x, prior=torch.tensor([0.0, 0.5, 0.5])).exp()
    assert (posterior[:, 0] == 0).all()
    flow_cases.assert_close(posterior.sum(dim=1), torch.ones(20, dtype=torch.float64))


def test_figures_are_those_of_the_known_posterior_in_the_noise_of_the_scores() -> None:
    flow = known_flow()
    images = torch.randint(0, 5, (40, 1, 1, 2), dtype=torch.uint8)
    labels = torch.arange(40) % 3
    result = classified(flow, images, labels, Scoring(Measure(5, "gaussian", 0.4), draws=3, seed=7))

    posterior = torch.stack(
        [
            known_posterior(
                Measure(5, "gaussian", 0.4).noisy(images, [seeded_generator(7, "evaluation", d, k) for k in range(40)])
            )
            for d in range(3)
        ]
    )  # (draws, N, 3)
    correct = (posterior.argmax(dim=2) == labels).double()
    by_image = correct.mean(dim=0)
    assert result.accuracy == pytest.approx(float(correct.mean()))
    assert result.standard_error == pytest.approx(float(by_image.std()) / math.sqrt(40))
    loss = -torch.stack([posterior[:, k, y].log().mean() for k, y in enumerate(labels.tolist())]).mean()
    assert result.log_loss == pytest.approx(float(loss), rel=1e-6)
    error = expected_calibration_error(posterior.max(dim=2).values.flatten(), correct.flatten())
    assert result.calibration_error == pytest.approx(error, abs=1e-6)
    assert (result.images, result.draws) == (40, 3)
    assert 0 < result.accuracy < 1


def test_figures_follow_from_the_scores_of_each_class() -> None:
    images = torch.randint(0, 17, (6, 1, 4, 4), dtype=torch.uint8)
    labels = torch.arange(6) % 3
    measure = Measure(17)
    by_class = torch.stack(
        [class_scores(CONDITIONAL, images, scoring=Scoring(measure, 2, 3, k)).scores for k in range(3)]
    )  # (3, draws, N)
    expected = (by_class.argmax(dim=0) == labels).double().mean()
    assert classified(CONDITIONAL, images, labels, Scoring(measure, 2, 3)).accuracy == pytest.approx(float(expected))


def test_calibration_by_hand() -> None:
    confidence = torch.tensor([0.95, 0.97, 0.60, 0.62, 0.64, 1 / 3], dtype=torch.float64)
    correct = torch.tensor([1, 0, 1, 1, 0, 0])
    # 15 bins: (14/15, 1] holds the first two; (9/15, 10/15] holds .62 and .64; .60 is the end of (8/15, 9/15];
    # 1/3 is the end of (4/15, 5/15].
    expected = (abs(1 - 1.92) + abs(1 - 1.26) + abs(1 - 0.60) + abs(0 - 1 / 3)) / 6
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-6)
    assert expected_calibration_error(confidence, correct, bins=1) == pytest.approx(
        abs(3 - float(confidence.sum())) / 6, abs=1e-6
    )
    assert expected_calibration_error(torch.tensor([1.0, 1.0]), torch.tensor([1, 1])) == 0
    assert math.isnan(expected_calibration_error(torch.tensor([math.nan]), torch.tensor([1])))


def test_what_json_cannot_hold_is_null() -> None:
    images = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    result = classified(CONDITIONAL, images, torch.tensor([1]), Scoring(Measure(17))).to_dict()
    assert tuple(result) == BAYES_KEYS
    assert result["bayes_accuracy_standard_error"] is None
    assert result["bayes_log_loss"] > 0


@pytest.mark.parametrize(
    ("name", "labels", "prior", "message"),
    [
        ("unconditional", [0, 0], None, "expected a conditional model"),
        ("conditional", [0, -1], None, "expected a class for every image"),
        ("conditional", [0, 3], None, "y: expected 0 to 2"),
        ("conditional", [0], None, r"y: expected \(2,\) integer labels"),
        ("conditional", [0, 1], [0.5, 0.5], r"prior: expected \(3,\) probabilities"),
        ("conditional", [0, 1], [0.5, 0.5, 0.5], "add up to 1"),
        ("conditional", [0, 1], [1.5, -0.5, 0.0], "prior: expected"),
    ],
)
def test_what_cannot_be_classified_is_refused(
    name: str, labels: list[int], prior: list[float] | None, message: str
) -> None:
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    chosen = None if prior is None else torch.tensor(prior)
    with pytest.raises(ValueError, match=message):
        classified(flow_cases.build(name), images, torch.tensor(labels), Scoring(Measure(17)), chosen)
