"""All that scores of a set of images say, from one pass over it: what `tarflow evaluate` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from tarflow.checkpoint import Run
from tarflow.data.load import ImageSet, Splits
from tarflow.evaluation.likelihood.anomalies import Anomalies, detect
from tarflow.evaluation.likelihood.bayes import BAYES_KEYS, BayesClassification, classification
from tarflow.evaluation.likelihood.evaluate import (
    IMPORTANCE_KEYS,
    PRECISION_KEYS,
    ClassScore,
    ImportanceBound,
    Likelihood,
    PrecisionDifference,
    by_class,
    by_patch,
    fitted_yardstick,
    importance_bound,
    precision_difference,
    summary,
)
from tarflow.evaluation.likelihood.gaussian import GaussianYardstick, NoYardstick
from tarflow.evaluation.likelihood.held_out import image_scores
from tarflow.evaluation.likelihood.scores import Progress, class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.jsontext import finite
from tarflow.run_data import open_all, open_given, open_splits, own_source

Split = Literal["held-out", "train", "all"]


@dataclass(frozen=True)
class Evaluation:
    """What is known of a set of images; what was not asked for, or cannot be had, is None or empty.

    Attributes:
        likelihood, importance, precision: of all images, of pixels, and against float64.
        by_class: by the names of the classes. by_patch: (rows, columns), bits a dimension.
        bayes: the flow as a classifier of them.
        against: the flow as a detector of other images, by their name. against_labels: the label policy of that.
    """

    likelihood: Likelihood
    importance: ImportanceBound | None
    precision: PrecisionDifference | None
    by_class: dict[str, ClassScore]
    by_patch: Tensor | None
    bayes: BayesClassification | None
    against: dict[str, Anomalies]
    against_labels: str

    def to_dict(self) -> dict[str, Any]:
        """As `tarflow evaluate` prints it. A number that is not finite is null."""
        figure = self.likelihood.scoring.measure.figure
        classes = {
            name: {figure: score.mean, **{k: v for k, v in asdict(score).items() if k != "mean"}}
            for name, score in self.by_class.items()
        }
        values = self.likelihood.to_dict()
        values |= self.importance.to_dict() if self.importance else dict.fromkeys(IMPORTANCE_KEYS)
        values |= self.precision.to_dict() if self.precision else dict.fromkeys(PRECISION_KEYS)
        values |= {"by_class": classes or None}
        values |= {"by_patch": None if self.by_patch is None else self.by_patch.tolist()}
        values |= self.bayes.to_dict() if self.bayes else dict.fromkeys(BAYES_KEYS)
        against = {name: {"labels": self.against_labels, **found.to_dict()} for name, found in self.against.items()}
        return finite(values | {"against": against or None})


def evaluate_images(
    run: Run,
    images: ImageSet,
    scoring: Scoring,
    *,
    yardstick: GaussianYardstick | NoYardstick | None = None,
    against: Mapping[str, Tensor] | None = None,
    classify: bool = True,
    patches: bool = False,
    float64: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score images once, and say what follows.

    Args:
        scoring: under what; labels that are None become those that `Scoring.resolved` chooses.
        yardstick: from `fit_yardstick`.
        against: images (M, C, H, W) uint8 that do not belong, by name; each is scored once, without a label.
        classify: by Bayes' rule, where model and images have classes. patches: the map of the mean, too.
        float64: how many images are scored again in float64.
        batch_size, progress: see `class_scores`.

    Raises:
        ValueError: as `class_scores`.
    """
    flow = run.flow
    labels = images.values(flow.sequence.condition)
    options = {"batch_size": batch_size, "progress": progress}
    classify = classify and labels is not None and bool(flow.conditions.size)
    resolved = scoring.resolved(flow, labels)
    # Images are compared with others under labels that both have: none of their own.
    plain = Scoring(scoring.measure, scoring.draws, scoring.seed, "null" if resolved.labels == "null" else None)
    plain = plain.resolved(flow)
    sweeps = classify or (bool(against) and plain.labels == "marginal")
    found = class_scores(
        flow,
        images.images,
        labels,
        scoring=resolved,
        all_classes=sweeps,
        maps=patches,
        yardstick=fitted_yardstick(yardstick, scoring),
        **options,  # type: ignore[arg-type]
    )
    detected = {}
    inside = found.under(plain.labels, flow) if against else None
    if against and inside is None:  # of numbers, which are no mean of what was scored
        inside = class_scores(flow, images.images, scoring=plain, **options)  # type: ignore[arg-type]
    for name, others in (against or {}).items():
        assert inside is not None
        outside = class_scores(flow, others, scoring=plain, **options)  # type: ignore[arg-type]
        detected[name] = detect(image_scores(inside, images.images), image_scores(outside, others))
    named = images.labels is not None and images.class_names
    return Evaluation(
        likelihood=summary(found, yardstick),
        importance=importance_bound(found),
        precision=precision_difference(flow, found, images.images, labels, count=float64) if float64 else None,
        by_class=by_class(found, images.labels, images.class_names) if named and images.labels is not None else {},
        by_patch=by_patch(found) if patches else None,
        bayes=classification(found, labels) if classify and labels is not None else None,
        against=detected,
        against_labels=plain.policy,
    )


def choose_images(
    run: Run,
    source: str | None,
    split: Split,
    *,
    skip_bad: bool | None = None,
    progress: Progress | None = None,
    conditions_from: str | None = None,
) -> tuple[ImageSet, Split, Splits, bool]:
    """The images of a split of the run's own data, or of another source: they, their split, all, whether they are own.

    A seeded fraction means nothing in a set that was never trained on: "held-out" is all of it, unless it has a split
    of its own. `conditions_from` is a table with the numbers of the images, see `run_data.image_options`.
    """
    if source is None:
        splits, own = open_splits(run, skip_bad=skip_bad, progress=progress, conditions_from=conditions_from), True
    else:
        splits, own = open_given(run, source, skip_bad=skip_bad, progress=progress, conditions_from=conditions_from)
    if split == "all" or (split == "held-out" and not own and not splits.own_split):
        found = open_all(run, source or own_source(run), skip_bad=skip_bad, conditions_from=conditions_from)
        return found, "all", splits, own
    return splits.train if split == "train" else splits.held_out, split, splits, own
