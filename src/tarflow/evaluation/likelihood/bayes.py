"""The flow as a classifier, by Bayes' rule: argmax_y p(x|y) p(y), and how far its probabilities can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.scores import ClassScores, default_batch_size, under_conditions
from tarflow.evaluation.likelihood.scoring import Conditions
from tarflow.evaluation.shares import standard_error
from tarflow.jsontext import finite
from tarflow.model.flow import TarFlow

BAYES_KEYS = (
    "bayes_accuracy",
    "bayes_accuracy_standard_error",
    "bayes_calibration_error",
    "bayes_log_loss",
)
BINS = 15  # of the calibration error; as in Guo et al. 2017


@dataclass(frozen=True)
class BayesClassification:
    """How well the class of a labelled image follows from the flow's densities.

    Attributes:
        accuracy: share of (image, draw) whose most probable class is the given one.
        standard_error: of `accuracy`, over images, the value of an image being its mean over draws; NaN for one
            image, and where all are right or all wrong.
        calibration_error: `expected_calibration_error` over all images and draws, 0 to 1.
        log_loss: mean of -log p(y|x) of the given class, nats; log K is what a guess among K has.
        images, draws: what was averaged over.
    """

    accuracy: float
    standard_error: float
    calibration_error: float
    log_loss: float
    images: int
    draws: int

    def to_dict(self) -> dict[str, Any]:
        """As `tarflow evaluate` prints it. A number that is not finite is null."""
        values = (self.accuracy, self.standard_error, self.calibration_error, self.log_loss)
        return finite(dict(zip(BAYES_KEYS, values, strict=True)))


def log_posterior(flow: TarFlow, x: Tensor, *, prior: Tensor | None = None) -> Tensor:
    """log p(y|x) of images x (B, C, H, W) as the model sees them, nats, (B, K), on the model's device.

    Every image goes through the flow once a class; gradients are not kept. `prior` and errors: see
    `Conditions.log_posterior`.
    """
    if not flow.conditions.size:
        raise ValueError(f"bayes classifier: expected a model of classes, got condition {flow.sequence.condition}")
    conditions = Conditions.of(flow, None, "marginal", len(x))
    size = max(len(x), default_batch_size(flow))
    return conditions.log_posterior(under_conditions(flow, x, conditions, batch_size=size), prior)


def bayes_classifier(flow: TarFlow, x: Tensor, *, prior: Tensor | None = None) -> Tensor:
    """argmax_y p(x|y) p(y) of images (B, C, H, W) as the model sees them, (B,) int64. See `log_posterior`."""
    return log_posterior(flow, x, prior=prior).argmax(dim=1)


def classification(found: ClassScores, labels: Tensor, *, prior: Tensor | None = None) -> BayesClassification:
    """How well labels (N,), each a class, follow from scores with `all_classes`, in each of their draws.

    Raises:
        ValueError: scores that are not under each class, or an image without a label.
    """
    posterior = found.conditions.log_posterior(found.log_prob, prior)  # (draws, N, K)
    y = labels.cpu().long()
    if len(y) != posterior.shape[1] or bool((y < 0).any()):
        raise ValueError("bayes classifier: expected a class for every image")
    best = posterior.max(dim=2)
    correct = (best.indices == y).double()
    by_image, count = correct.mean(dim=0), len(y)
    return BayesClassification(
        accuracy=float(by_image.mean()),
        standard_error=standard_error(float(by_image.var()) / count) if count > 1 else math.nan,
        calibration_error=expected_calibration_error(best.values.exp().flatten(), correct.flatten()),
        log_loss=-float(posterior.gather(2, y.expand(len(posterior), -1)[:, :, None]).mean()),
        images=count,
        draws=len(posterior),
    )


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Σ_b n_b/n |accuracy_b - mean confidence_b| over `bins` bins of equal width in confidence, ((b-1)/bins, b/bins].

    Args:
        confidence: (n,), the probability given to the chosen class. correct: (n,), whether it was the right one.

    Source: Guo et al., On calibration of modern neural networks, 2017.

    >>> round(expected_calibration_error(torch.tensor([0.9, 0.9, 0.5, 0.5]), torch.tensor([1, 1, 1, 0])), 6)
    0.05
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or bins < 1 or not len(confidence):
        raise ValueError(
            f"expected confidence (n,), correct (n,) and bins >= 1, "
            f"got {tuple(confidence.shape)}, {tuple(correct.shape)}, {bins}"
        )
    if not bool(confidence.isfinite().all()):
        return math.nan
    place = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1
    # n_b/n |accuracy - confidence| is |Σ (correct - confidence)| / n, bin by bin.
    gap = torch.zeros(bins, device=place.device, dtype=torch.float64).index_add_(
        0, place, correct.double() - confidence.double()
    )
    return float(gap.abs().sum()) / len(confidence)
