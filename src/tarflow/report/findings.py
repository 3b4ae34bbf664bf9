"""The figures of a run that its verdict rests on, from its metrics, its scores and what was measured of its samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.bayes import classification
from tarflow.evaluation.likelihood.scores import class_scores, log_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.evaluation.quality.judge import Figure, kept_quality
from tarflow.report.likelihood import unit_of
from tarflow.report.subject import CLASSES, Subject, Unavailable

LEAST = 20  # samples, for a mean with an error
ERRORS = 3  # standard errors that a difference is beyond, where it is called one
WORTH = 0.01  # bits/dim: smaller differences are none to act on
EVALUATIONS = 5  # of held-out images, at least, that a trend is fitted to
SHOWN = 0.8  # of the share of held-out images whose class is seen, at which that of samples is called less
ALIKE = 1.1  # times the distance of held-out images that samples are called as near with


class Estimate(NamedTuple):
    """A difference in bits/dim, and its standard error."""

    value: float
    error: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.error)

    @property
    def clear(self) -> bool:
        """Whether it is beyond its error, and worth a word."""
        return self.known and abs(self.value) > max(ERRORS * self.error, WORTH)

    def __format__(self, sign: str) -> str:
        """Without its sign, or with it by "+"."""
        return f"{self.value if sign else abs(self.value):{sign}.3f} ± {self.error:.3f}"


class Trend(NamedTuple):
    """What a straight line through the last `scores` held-out scores, of the steps `first` to `last`, changes by."""

    change: Estimate
    scores: int
    first: int
    last: int
    drop: float  # from the last score but one to the last

    def __format__(self, _: str) -> str:
        return f"over the last {self.scores} evaluations, steps {self.first:,} to {self.last:,}"


class Distance(NamedTuple):
    """A distance of samples from training images, and that of as many held-out images."""

    name: str
    value: float
    floor: float
    images: int

    @property
    def ratio(self) -> float:
        return self.value / self.floor if self.floor > 0 else math.nan

    def __format__(self, _: str) -> str:
        return f"{self.name} {self.value:.4g} against {self.floor:.4g}, {self.images:,} of each"


class Agreement(NamedTuple):
    """The share of samples that a classifier takes for the class they were meant to show, and of held-out images."""

    value: float
    expected: float


class Share(NamedTuple):
    """A share of some things, beside another that is expected."""

    value: float
    things: int
    expected: float

    @property
    def above(self) -> bool:
        """Whether it is more than expected, beyond the error of the expected share."""
        error = math.sqrt(self.expected * (1 - self.expected) / self.things)
        return self.value - self.expected > ERRORS * error


@dataclass(frozen=True)
class Findings:
    """The figures of a run; None is not known.

    Attributes:
        unit: of the scores. problem: why no image can be scored. not_finite: of how many `images` log p is not finite.
        step, steps: taken, and planned. skipped: of them. finite: whether the last loss is a number.
        evaluations: how many held-out scores there are; their `trend`, and the step of the best.
        gap: held-out minus training images. advantage: Gaussian yardstick minus model. atypical: held-out images minus
            samples of the model; bits/dim, lower is likelier.
        distance: of samples. agreement: samples of the class they were meant to show, beside the same share of held-out
            images. accuracy: held-out images likeliest under their own class, beside the most frequent class alone.
    """

    unit: str
    problem: str | None = None
    not_finite: int = 0
    images: int = 0
    step: int | None = None
    steps: int | None = None
    skipped: int = 0
    finite: bool = True
    evaluations: int = 0
    trend: Trend | None = None
    best: int | None = None
    gap: Estimate | None = None
    advantage: Estimate | None = None
    atypical: Estimate | None = None
    distance: Distance | None = None
    agreement: Agreement | None = None
    accuracy: Share | None = None

    @property
    def needed(self) -> int:
        """Held-out scores that a trend takes."""
        return EVALUATIONS

    @property
    def stopped(self) -> bool:
        """Whether fewer steps were taken than planned."""
        return self.step is not None and self.steps is not None and self.step < self.steps

    @property
    def fell(self) -> bool:
        """Whether the trend is downwards."""
        return self.trend is not None and self.trend.change.clear and self.trend.change.value < 0

    @property
    def falls(self) -> bool:
        """Whether it still is, at the last evaluation: a line is steep after a steep beginning, too."""
        return self.fell and self.trend is not None and self.trend.drop > WORTH

    @property
    def rises(self) -> bool:
        return self.trend is not None and self.trend.change.clear and self.trend.change.value > 0

    @property
    def memorises(self) -> bool:
        return self.gap is not None and self.gap.clear and self.gap.value > 0

    @property
    def generalises(self) -> bool:
        """Whether it is known that training images are no likelier."""
        return self.gap is not None and self.gap.known and not self.memorises

    @property
    def side(self) -> int | None:
        """1 where the model is ahead of the Gaussian, -1 behind, 0 level."""
        if self.advantage is None or not self.advantage.known:
            return None
        beyond = abs(self.advantage.value) > ERRORS * self.advantage.error
        return beyond * (1 if self.advantage.value > 0 else -1)

    @property
    def surprises(self) -> int | None:
        """1 where held-out images are less likely than samples, -1 where they are likelier, 0 level."""
        if self.atypical is None or not self.atypical.known:
            return None
        return self.atypical.clear * (1 if self.atypical.value > 0 else -1)

    @property
    def disagrees(self) -> bool:
        """Whether clearly fewer samples than held-out images show their class."""
        return self.agreement is not None and self.agreement.value < SHOWN * self.agreement.expected

    @property
    def near(self) -> bool:
        """Whether samples are as near to the training images as held-out ones."""
        return self.distance is not None and self.distance.ratio <= ALIKE

    @property
    def far(self) -> bool:
        return self.distance is not None and self.distance.ratio > ALIKE


def findings(subject: Subject) -> Findings:
    """Every figure that can be had."""
    found = _training(subject) | _samples(subject)
    try:
        best = subject.likelihoods[0]
    except Unavailable as reason:
        return Findings(unit_of(subject.run.measure.figure), problem=str(reason), **found)
    found |= {"images": best.images, "not_finite": best.not_finite}
    if (ahead := best.yardstick) is not None:
        found["advantage"] = Estimate(ahead.advantage, ahead.advantage_standard_error)
    held_out = subject.class_scores.bits.mean(dim=0)
    found["gap"] = difference(held_out, _training_bits(subject))
    if (drawn := _sample_bits(subject)) is not None:
        found["atypical"] = difference(held_out, drawn)
    labels = subject.held_out.labels
    if labels is not None and subject.class_scores.conditions.classes and bool((labels >= 0).all()):
        most = int(torch.bincount(labels).max()) / len(labels)
        found["accuracy"] = Share(classification(subject.class_scores, labels).accuracy, len(labels), most)
    return Findings(unit_of(best.scoring.measure.figure), **found)


def trend(scores: Sequence[tuple[int, float]]) -> Trend | None:
    """Of the last third of (step, score) in rising steps, but of `EVALUATIONS` at least; None where there are fewer.

    A line is fitted by least squares, y = a + b·step; its change is b times the steps between first and last, and the
    standard error of b is √(Σ residual²/(n - 2) / Σ (step - mean)²). A curve that bends has larger residuals.

    >>> found = trend([(10 * k, 5.0 - 0.1 * k) for k in range(1, 7)])
    >>> found.scores, round(found.change.value, 6), found.change.error < 1e-6
    (5, -0.4, True)
    """
    if len(scores) < EVALUATIONS:
        return None
    last = scores[-max(EVALUATIONS, len(scores) // 3) :]
    count, span = len(last), last[-1][0] - last[0][0]
    middle, mean = sum(x for x, _ in last) / count, sum(y for _, y in last) / count
    spread = sum((x - middle) ** 2 for x, _ in last)
    if not spread:
        return None
    slope = sum((x - middle) * (y - mean) for x, y in last) / spread
    rest = sum((y - mean - slope * (x - middle)) ** 2 for x, y in last)
    error = math.sqrt(rest / (count - 2) / spread)
    drop = last[-2][1] - last[-1][1]
    return Trend(Estimate(slope * span, error * span), count, last[0][0], last[-1][0], drop)


def difference(a: Tensor, b: Tensor) -> Estimate | None:
    """mean a - mean b of independent values, with its standard error; None where one is too few, or not finite."""
    if min(len(a), len(b)) < 2 or not bool(torch.cat([a, b]).isfinite().all()):
        return None
    error = math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
    return Estimate(float(a.mean() - b.mean()), error)


def _training(subject: Subject) -> dict[str, Any]:
    """What metrics.jsonl says of steps and scores."""
    metrics = subject.metrics
    if not metrics:
        return {}
    key = f"held_out_{subject.run.measure.figure}"
    scores = {int(m["step"]): float(m[key]) for m in metrics if isinstance(m.get(key), float | int)}
    curve = [(step, score) for step, score in sorted(scores.items()) if math.isfinite(score)]
    losses = [m["loss"] for m in metrics if "loss" in m]
    training = subject.run.config.training
    skipped = [m["skipped"] for m in metrics if isinstance(m.get("skipped"), int)]
    return {
        "step": max(int(m["step"]) for m in metrics),
        "steps": training.steps if training else None,
        "skipped": skipped[-1] if skipped else 0,
        "finite": not losses or (losses[-1] is not None and math.isfinite(losses[-1])),
        "evaluations": len(curve),
        "trend": trend(curve),
        "best": min(curve, key=lambda entry: entry[1])[0] if curve else None,
    }


def _training_bits(subject: Subject) -> Tensor:
    """Bits a dimension of as many training images as held-out ones, under the same policy, (N,)."""
    train, seed = subject.splits.train.choice(len(subject.held_out), subject.settings.seed), subject.settings.seed
    values = train.values(subject.run.config.model.conditioned_on) if subject.held_out_values is not None else None
    how = Scoring(subject.run.measure, 1, seed)
    return class_scores(subject.run.flow, train.images, values, scoring=how).bits.mean(dim=0)


def _sample_bits(subject: Subject) -> Tensor | None:
    """Bits a dimension of the samples as they are drawn, with their noise, (n,); None where they are few, or others.

    Their mean is the entropy of the model. They go through the classes alike, as far as they are shown.
    """
    if subject.run.config.model.num_classes > CLASSES:
        return None
    try:
        x = subject.raw_samples
    except Unavailable:
        return None
    if len(x) < LEAST:
        return None
    return subject.run.measure.bits_per_dim(
        log_likelihood(subject.run.flow, x, subject.given).cpu().double(), x[0].numel()
    )


def _samples(subject: Subject) -> dict[str, Any]:
    """What `tarflow quality` measured, the newest."""
    found: dict[str, Any] = {}
    for entry in kept_quality(subject.run).values():
        for figure, values in entry["figures"].items():
            if figure.startswith("FD"):
                f = Figure.from_dict(values)
                found["distance"] = Distance(figure, f.value_at_floor_samples, f.floor, f.floor_samples)
        share, expected = entry.get("agreement"), entry.get("classifier_accuracy")
        if isinstance(share, float | int) and isinstance(expected, float | int):
            found["agreement"] = Agreement(float(share), float(expected))
    return found
