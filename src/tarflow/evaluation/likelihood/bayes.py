"""The flow as a classifier, by Bayes' rule: argmax_y p(x|y) p(y), and how far its probabilities can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.scores import Progress, beyond, check_policy, default_batch_size, under_each_class
from tarflow.evaluation.shares import standard_error
from tarflow.fields import integer
from tarflow.measure import Measure
from tarflow.model.flow import TarFlow
from tarflow.seeding import seeded_generator

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
        return {k: v if math.isfinite(v) else None for k, v in zip(BAYES_KEYS, values, strict=True)}


def log_posterior(flow: TarFlow, x: Tensor, *, prior: Tensor | None = None, progress: Progress | None = None) -> Tensor:
    """log p(y|x) = log p(x|y) + log p(y) - log Σ_y' p(x|y') p(y'), nats, (B, K), on the model's device.

    Every image goes through the flow once a class; gradients are not kept.

    Args:
        flow: a conditional model. x: (B, C, H, W), floating; as many are encoded at once.
        progress: see `scores.Progress`.
        prior: p(y), (K,), such as the frequencies of the classes; None: all alike.

    Raises:
        ValueError: an unconditional model, images that do not fit it, or a prior that is none.
    """
    classes = flow.config.num_classes
    if not classes:
        raise ValueError("bayes classifier: expected a conditional model, got one without classes")
    batch_size = max(len(x), default_batch_size(flow))
    joint = under_each_class(flow, flow.log_prob, x, batch_size=batch_size, progress=progress)
    if prior is not None:
        joint = joint + _checked_prior(prior, classes).to(joint).log()
    return joint.log_softmax(dim=1)


def bayes_classifier(flow: TarFlow, x: Tensor, *, prior: Tensor | None = None) -> Tensor:
    """argmax_y p(x|y) p(y) of images (B, C, H, W) as the model sees them, (B,) int64. See `log_posterior`."""
    return log_posterior(flow, x, prior=prior).argmax(dim=1)


def evaluate_bayes(
    flow: TarFlow,
    images: Tensor,
    labels: Tensor,
    *,
    levels: int,
    noise: str,
    noise_std: float = 0.0,
    draws: int = 4,
    seed: int = 0,
    batch_size: int | None = None,
    prior: Tensor | None = None,
    progress: Progress | None = None,
) -> BayesClassification:
    """Classify labelled images, each in the draws of noise in which `score_images` scores it.

    Args:
        images: (N, C, H, W) uint8. labels: (N,), each a class. prior: see `log_posterior`.
        progress: see `scores.Progress`.

    Raises:
        ValueError: an unconditional model, an image without a label, or arguments that do not fit each other.
    """
    measure = Measure(levels, noise, noise_std)
    if not flow.config.num_classes:
        raise ValueError("bayes classifier: expected a conditional model, got one without classes")
    check_policy(flow, labels, "given", len(images))
    draws = integer("draws", draws)
    if len(images) < 1 or draws < 1:
        raise ValueError(f"expected at least one image and one draw, got {len(images)} and {draws}")
    step = default_batch_size(flow) if batch_size is None else integer("batch_size", batch_size, 1)
    count, classes = len(images), flow.config.num_classes
    confidence, correct, loss = (torch.empty(draws, count, device="cpu", dtype=torch.float64) for _ in range(3))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        y = labels[rows].cpu().long()
        for draw in range(draws):
            generators = [seeded_generator(seed, "evaluation", draw, k) for k in range(rows.start, rows.stop)]
            x = measure.noisy(images[rows], generators)
            passed = beyond(progress, (start * draws + draw * len(y)) * classes, count * draws * classes)
            posterior = log_posterior(flow, x, prior=prior, progress=passed).cpu().double()  # (b, K)
            best = posterior.max(dim=1)
            confidence[draw, rows] = best.values.exp()
            correct[draw, rows] = (best.indices == y).double()
            loss[draw, rows] = -posterior.gather(1, y[:, None])[:, 0]
    by_image = correct.mean(dim=0)
    return BayesClassification(
        accuracy=float(by_image.mean()),
        standard_error=standard_error(float(by_image.var()) / count) if count > 1 else math.nan,
        calibration_error=expected_calibration_error(confidence.flatten(), correct.flatten()),
        log_loss=float(loss.mean()),
        images=count,
        draws=draws,
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


def _checked_prior(prior: Tensor, classes: int) -> Tensor:
    total = float(prior.double().sum())
    if tuple(prior.shape) != (classes,) or bool((prior < 0).any()) or not math.isclose(total, 1, abs_tol=1e-4):
        raise ValueError(
            f"prior: expected ({classes},) probabilities that add up to 1, got {tuple(prior.shape)}, {total}"
        )
    return prior
