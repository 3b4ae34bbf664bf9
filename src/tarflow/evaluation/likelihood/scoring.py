"""Under what a log-likelihood is computed: measure, draws of the noise and labels, as values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.measure import Measure
from tarflow.model.condition import NULL_CLASS, Condition, Value
from tarflow.model.flow import TarFlow
from tarflow.seeding import seeded_generator

LabelPolicy: TypeAlias = Literal["given", "null", "marginal", "none"]


@dataclass(frozen=True)
class Scoring:
    """Under what log-likelihoods are computed: two of them can be compared where this is the same.

        given       log p(x|y), every image with a label of its own; a number is one class for all images
        null        log p(x|∅), the null class, whatever the labels say
        marginal    log 1/K Σ_y p(x|y), all K classes alike, whatever the labels say; K times the work
        none        log p(x), the only one of an unconditional model

    Attributes:
        measure: how the model sees pixels.
        draws, seed: of the noise. The noise of image k is drawn on the CPU from (seed, draw, k).
        labels: one of these, where a number beside numbers of the images is that class and these; None is "none"
            without a condition, "given" where all images have labels, else "marginal", or "null" where the condition is
            not classes alone, over which a mean has a meaning.
    """

    measure: Measure
    draws: int = 4
    seed: int = 0
    labels: LabelPolicy | int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "draws", integer("draws", self.draws, 1))
        object.__setattr__(self, "seed", integer("seed", self.seed))
        if self.labels == NULL_CLASS:
            object.__setattr__(self, "labels", "null")

    @property
    def policy(self) -> str:
        """Its name, for a reader: "given" for one class as well."""
        return "given" if isinstance(self.labels, int) else str(self.labels)

    def resolved(self, flow: TarFlow, y: Value = None) -> Scoring:
        """The same with `labels` chosen for the labels y of the images; see `Conditions.of` for errors."""
        if self.labels is not None:
            return self
        if not flow.conditions:
            return replace(self, labels="none")
        missing = flow.conditions.missing(y)
        given = missing is not None and not bool(missing.any())
        return replace(self, labels="given" if given else "marginal" if flow.conditions.size else "null")

    def passes(self, flow: TarFlow) -> int:
        """How often an image without a label goes through the flow for each draw of its noise."""
        return len(flow.conditions.sweep()) if self.resolved(flow).labels == "marginal" else 1

    def noisy(self, pixels: Tensor, draw: int, numbers: Sequence[int]) -> Tensor:
        """What the model sees of images (B, C, H, W) uint8 in one draw of the noise of the images number `numbers`."""
        return self.measure.noisy(pixels, [seeded_generator(self.seed, "evaluation", draw, k) for k in numbers])


@dataclass(frozen=True)
class Conditions:
    """Which values of the condition each of N images is scored under, and what scores under them come to.

    Attributes:
        condition: that of the model.
        values: of N·K rows, K an image in succession; None for null in all of them.
        width: K.
        own: (N,), the column of the value that the policy scores each image under; None where it is "marginal".
        classes: how many columns, the first ones, are all values that the condition has; 0 where they are not there.
    """

    condition: Condition
    values: Value
    width: int
    own: Tensor | None
    classes: int

    @classmethod
    def of(
        cls, flow: TarFlow, y: Value, labels: LabelPolicy | int | None, count: int, *, all_classes: bool = False
    ) -> Conditions:
        """Those of `count` images with labels y under a policy, and all classes besides where they are asked for.

        Raises:
            ValueError: a policy that is not one of this model, or lacks labels; an unknown label.
        """
        condition = flow.conditions
        known = ("given", "null", "marginal")[: 3 if condition.size else 2] if condition else ("none",)
        policy = "given" if isinstance(labels, int) else labels
        if policy not in known:
            kind = "a conditional" if condition else "an unconditional"
            kind += "" if condition.size or not condition else f" (of {flow.sequence.condition}, not classes alone)"
            raise ValueError(f"label policy: expected {' or '.join(map(repr, known))} for {kind} model, got {policy!r}")
        sweep = condition.sweep().expand(count, -1) if all_classes or policy == "marginal" else None
        classes = 0 if sweep is None else sweep.shape[1]
        first = torch.zeros(count, device="cpu", dtype=torch.int64)  # the only column
        if policy == "none":
            return cls(condition, None, 1, first, 0)
        given = condition.labelled(y, labels, count) if isinstance(labels, int) else y
        wanted = _given(flow, given, count) if policy == "given" else None
        if sweep is None or not classes:
            return cls(condition, wanted, 1, first, 0)
        if policy == "null":
            sweep = torch.cat([sweep, torch.full_like(first, NULL_CLASS).unsqueeze(1)], dim=1)
            return cls(condition, sweep.flatten(), classes + 1, torch.full_like(first, classes), classes)
        own = None if wanted is None else (sweep == wanted.unsqueeze(1)).int().argmax(dim=1)
        return cls(condition, sweep.flatten(), classes, own, classes)

    def rows(self, rows: slice) -> Conditions:
        """Those of some of the images."""
        values = self.pairs(slice(rows.start * self.width, rows.stop * self.width))
        return replace(self, values=values, own=None if self.own is None else self.own[rows])

    def pairs(self, rows: slice) -> Value:
        """The values of some pairs of an image and a column."""
        return self.condition.rows(self.values, rows)

    def score(self, log_prob: Tensor) -> Tensor:
        """(…, N) under the policy, of log p (…, N, K)."""
        if self.own is None:
            return log_prob.logsumexp(dim=-1) - math.log(self.classes)
        own = self.own.to(log_prob.device).expand(log_prob.shape[:-1]).unsqueeze(-1)
        return log_prob.gather(-1, own).squeeze(-1)

    def log_posterior(self, log_prob: Tensor, prior: Tensor | None = None) -> Tensor:
        """log p(y|x) = log p(x|y) + log p(y) - log Σ_y' p(x|y') p(y'), nats, of log p (…, N, K): (…, N, classes).

        Args:
            prior: p(y), (classes,), such as the frequencies of the classes; None: all alike.
        """
        if not self.classes:
            raise ValueError("bayes classifier: expected a conditional model, and scores under each of its classes")
        joint = log_prob[..., : self.classes]
        if prior is not None:
            joint = joint + _checked_prior(prior, self.classes).to(joint).log()
        return joint.log_softmax(dim=-1)

    def map(self, tokens: Tensor) -> Tensor:
        """(N, T), whose sum is `score`, of what each token adds to log p, (N, K, T).

        log mean_y p(x|y) ("marginal") is no sum over tokens, but with the posterior r_y = p(y|x) under equal priors

            log mean_y p(x|y) = Σ_y r_y log p(x|y) - KL(r ‖ uniform)

        is exact. So its map is the posterior's mean of the maps, less KL/T in every token: the KL, at most log K nats,
        is the price of not knowing the class, and belongs to no place.
        """
        if self.own is not None:
            rows = torch.arange(len(tokens), dtype=torch.int64, device=tokens.device)
            return tokens[rows, self.own.to(tokens.device)]
        log_posterior = self.log_posterior(tokens.sum(dim=2))  # (N, K)
        posterior = log_posterior.exp()
        divergence = (posterior * log_posterior).nan_to_num(nan=0.0).sum(dim=1) + math.log(self.classes)
        return (posterior.unsqueeze(2) * tokens).sum(dim=1) - divergence.unsqueeze(1) / tokens.shape[2]


def _given(flow: TarFlow, y: Any, count: int) -> Any:
    """Checked values of their own for every image, on the CPU."""
    if y is None:
        raise ValueError("label policy 'given': expected labels, got none; choose 'marginal' or 'null'")
    wanted = flow.conditions.check(y, count, torch.device("cpu"))
    missing = flow.conditions.missing(wanted)
    if missing is None or bool(missing.any()):
        row = 0 if missing is None else int(missing.nonzero()[0])
        raise ValueError(f"label policy 'given': image {row} has no label; choose 'marginal' or 'null'")
    return wanted


def _checked_prior(prior: Tensor, classes: int) -> Tensor:
    total = float(prior.double().sum())
    if tuple(prior.shape) != (classes,) or bool((prior < 0).any()) or not math.isclose(total, 1, abs_tol=1e-4):
        raise ValueError(
            f"prior: expected ({classes},) probabilities that add up to 1, got {tuple(prior.shape)}, {total}"
        )
    return prior
