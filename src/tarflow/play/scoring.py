"""Pictures scored: how likely, how usual among held-out images, which patches make it so, and which class is likely."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.anomalies import ImageScores
from tarflow.evaluation.likelihood.held_out import held_out_scores, image_scores, run_scoring
from tarflow.evaluation.likelihood.patch_maps import heat_map
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.evaluation.likelihood.table import score_columns
from tarflow.measure import to_8bit
from tarflow.play.streaming import streamed
from tarflow.play.studio import Studio

LIKELIEST = 5  # classes that are named
BINS = 24  # of the histogram
TAIL = 0.01  # of the held-out images at either end that do not stretch the histogram


@dataclass(frozen=True)
class Score:
    """What is known of one picture.

    Attributes:
        image: (C, H, W) uint8 of 256 levels. heat: the same under what each patch adds, (3, H, W); None where no patch
            has a finite density.
        log_likelihood: nats. bits: a dimension, in the measure of the run.
        percentile: the share of held-out images that are less likely; typicality: of those that are less typical. NaN
            where they are not known.
        classes: the likeliest, and their probability if all are alike before.
    """

    image: Tensor
    heat: Tensor | None
    log_likelihood: float
    bits: float
    percentile: float
    typicality: float
    classes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Histogram:
    """Held-out images by their bits a dimension: edges of the bins, one more than counts, and how many in all."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    images: int


@dataclass(frozen=True)
class Scores:
    """What is known of several pictures, in their order.

    Attributes:
        figure: what the bits are called, "bits_per_dim" or "noisy_bits_per_dim". policy: under which labels.
        histogram: of the held-out images; None where they are not to be had, and then `problem` says why.
    """

    scores: list[Score]
    figure: str
    policy: str
    draws: int
    histogram: Histogram | None
    problem: str


@dataclass
class Scorer:
    """Scores pictures by a run, and knows its held-out images once they were asked for."""

    studio: Studio
    reference: dict[int | str | None, ImageScores | str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def score(self, pixels: Tensor, label: Any) -> Iterator[tuple[float, Scores | None]]:
        """The share that is done, and at last the scores of pixels (N, C, H, W) uint8 at the levels of the run.

        Args:
            label: the class of all of them; -1 is the null class, None all classes alike; or a value of one row of
                another condition.
        """
        studio, given = self.studio, None
        asked = None if studio.fields else label
        if studio.fields and studio.flow.conditions.differs(label):
            asked, given = "given", studio.flow.conditions.repeat(label, len(pixels))
        scoring = self._scoring(asked)

        def work(tell: Callable[[tuple[float, Scores | None]], None]) -> None:
            with studio.turn:
                found = class_scores(
                    studio.flow,
                    pixels,
                    given,
                    scoring=scoring,
                    all_classes=bool(studio.classes),
                    maps=True,
                    progress=lambda done, total: tell((0.9 * done / total, None)),
                )
                known = self._held_out(asked, lambda done, total: tell((0.9 + 0.1 * done / total, None)))
                reference = None if isinstance(known, str) else known
                ours = image_scores(found, pixels)
                columns = score_columns(ours, "likelihood", reference)
                posterior = found.conditions.log_posterior(found.log_prob).exp().mean(dim=0) if studio.classes else None
                assert found.maps is not None
                scores = []
                for k, image in enumerate(to_8bit(pixels, studio.run.levels)):
                    patches = found.maps[k]
                    heat = heat_map(patches, image) if bool(patches.isfinite().any()) else None
                    percent = [columns[name] for name in ("percentile", "typicality_percentile")]
                    percentile, typicality = (math.nan if c is None else float(c[k]) for c in percent)
                    classes = () if posterior is None else self._likeliest(posterior[k])
                    bits, log_prob = float(ours.bits[k]), float(ours.log_prob[k])
                    scores.append(Score(image, heat, log_prob, bits, percentile, typicality, classes))
                histogram = None if reference is None else histogram_of(reference.bits)
                problem = known if isinstance(known, str) else ""
                figure, policy = scoring.measure.figure, found.scoring.policy
                tell((1.0, Scores(scores, figure, policy, scoring.draws, histogram, problem)))

        return streamed(work)

    def _scoring(self, label: int | Literal["given"] | None) -> Scoring:
        return run_scoring(self.studio.run, None if label == "given" else label, numbers=label == "given")

    def _held_out(
        self, label: int | Literal["given"] | None, progress: Callable[[int, int], None]
    ) -> ImageScores | str:
        """The run's held-out images under the same labels, or each under its own numbers; or why there are none."""
        if label == "given" and not self.studio.run.numbers:
            return "it is not known what the held-out images of its training were given"
        if label not in self.reference:
            try:
                self.reference[label] = held_out_scores(self.studio.run, self._scoring(label), progress=progress)
            except (ValueError, OSError):
                # The reason names a place on this machine, which is nothing for whoever looks at the page.
                self.reference[label] = "the held-out images of its training are not at hand here"
        return self.reference[label]

    def _likeliest(self, posterior: Tensor) -> tuple[tuple[str, float], ...]:
        if not bool(posterior.isfinite().all()):
            return ()
        top = posterior.topk(min(LIKELIEST, len(posterior)))
        names = self.studio.classes
        return tuple((names[k], p) for k, p in zip(top.indices.tolist(), top.values.tolist(), strict=True))


def histogram_of(bits: Tensor) -> Histogram:
    """Counts of the finite ones in bins of equal width; what lies far out is in the first bin or the last.

    >>> histogram_of(torch.tensor([1.0, 2.0, 3.0])).images
    3
    """
    known = bits[bits.isfinite()].double()
    if not len(known):
        return Histogram((0.0, 1.0), (0,), 0)
    low, high = (float(known.quantile(q)) for q in (TAIL, 1 - TAIL))
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(known.clamp(low, high), BINS, low, high)
    edges = tuple(low + (high - low) * k / BINS for k in range(BINS + 1))
    return Histogram(edges, tuple(int(c) for c in counts.tolist()), len(known))
