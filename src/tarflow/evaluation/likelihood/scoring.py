"""Under what a log-likelihood is computed: measure, draws of the noise and labels, as values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.measure import Measure
from tarflow.model.condition import NULL_CLASS
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
        labels: one of these; None is "none" without classes, "given" where every image has a label, else "marginal".
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

    def resolved(self, flow: TarFlow, y: Tensor | None = None) -> Scoring:
        """The same with `labels` chosen for the labels y of the images; see `Conditions.of` for errors."""
        if self.labels is not None:
            return self
        given = y is not None and not bool((y == NULL_CLASS).any())
        return dataclasses.replace(self, labels=("given" if given else "marginal") if flow.conditions else "none")

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
        table: (N, K), the values; None for a model without a condition, whose K is 1.
        own: (N,), the column of the value that the policy scores each image under; None where it is "marginal".
        classes: how many columns, the first ones, are all values that the condition has; 0 where they are not there.
    """

    table: Tensor | None
    own: Tensor | None
    classes: int

    @classmethod
    def of(
        cls, flow: TarFlow, y: Tensor | None, labels: LabelPolicy | int | None, count: int, *, all_classes: bool = False
    ) -> Conditions:
        """Those of `count` images with labels y under a policy, and all classes besides where they are asked for.

        Raises:
            ValueError: a policy that is not one of this model, or lacks labels; an unknown label.
        """
        known = ("given", "null", "marginal") if flow.conditions else ("none",)
        policy = "given" if isinstance(labels, int) else labels
        if policy not in known:
            kind = "a conditional" if flow.conditions else "an unconditional"
            raise ValueError(f"label policy: expected {' or '.join(map(repr, known))} for {kind} model, got {policy!r}")
        sweep = flow.conditions.sweep().expand(count, -1) if all_classes or policy == "marginal" else None
        classes = 0 if sweep is None else sweep.shape[1]
        if policy == "none":
            return cls(None, torch.zeros(count, device="cpu", dtype=torch.int64), 0)
        if policy == "marginal":
            return cls(sweep, None, classes)
        wanted = torch.full((count,), NULL_CLASS, device="cpu", dtype=torch.int64)
        if policy == "given":
            wanted = _given(flow, y if labels == "given" else [labels] * count, count)
        if sweep is None:
            return cls(wanted.unsqueeze(1), torch.zeros_like(wanted), 0)
        if policy == "null":
            return cls(torch.cat([sweep, wanted.unsqueeze(1)], dim=1), torch.full_like(wanted, classes), classes)
        return cls(sweep, (sweep == wanted.unsqueeze(1)).int().argmax(dim=1), classes)

    def rows(self, rows: slice) -> Conditions:
        """Those of some of the images."""
        table, own = (None if part is None else part[rows] for part in (self.table, self.own))
        return Conditions(table, own, self.classes)

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


def _given(flow: TarFlow, y: Tensor | Sequence[object] | None, count: int) -> Tensor:
    """Checked labels of their own for every image, on the CPU."""
    if y is None:
        raise ValueError("label policy 'given': expected labels, got none; choose 'marginal' or 'null'")
    wanted = flow.conditions.check(y, count, torch.device("cpu"))
    assert wanted is not None
    if bool((wanted == NULL_CLASS).any()):
        row = int((wanted == NULL_CLASS).nonzero()[0])
        raise ValueError(f"label policy 'given': image {row} has no label; choose 'marginal' or 'null'")
    return wanted


def _checked_prior(prior: Tensor, classes: int) -> Tensor:
    total = float(prior.double().sum())
    if tuple(prior.shape) != (classes,) or bool((prior < 0).any()) or not math.isclose(total, 1, abs_tol=1e-4):
        raise ValueError(
            f"prior: expected ({classes},) probabilities that add up to 1, got {tuple(prior.shape)}, {total}"
        )
    return prior
