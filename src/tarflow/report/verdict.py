"""The report in a few plain sentences: what the figures of a run say, and what to do next.

`RULES` is the table: of each topic the first rule whose condition holds gives its sentence, with the figure that it
rests on. What is not known has no sentence, and none says more than its figure. `NEXT` is the table of what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from tarflow.report.findings import Findings, findings
from tarflow.report.parts import Parts
from tarflow.report.subject import Subject

MOST = 6  # sentences, with the one on what to do

Topic: TypeAlias = Literal["data", "steps", "training", "overfitting", "yardstick", "samples", "classes", "typicality"]
Condition: TypeAlias = Callable[[Findings], bool]

GOOD, NOT_GOOD = True, False  # where there are too many sentences, good news makes room


class Rule(NamedTuple):
    """A sentence about a topic, under a condition; `text` is a template on the findings `f`."""

    topic: Topic
    good: bool
    when: Condition
    text: str


RULES: Sequence[Rule] = (
    Rule("data", NOT_GOOD, lambda f: f.problem is not None, "No image was scored: {f.problem}"),
    Rule(
        *("data", NOT_GOOD, lambda f: f.not_finite > 0),
        "{f.not_finite:,} of {f.images:,} held-out images have a log-density that is not finite.",
    ),
    Rule(
        *("steps", NOT_GOOD, lambda f: not f.finite),
        "The training diverged: the last loss that was kept is not a finite number.",
    ),
    Rule(
        *("steps", NOT_GOOD, lambda f: f.skipped > 0),
        "{f.skipped:,} of {f.step:,} steps did not count: their loss or gradient was not finite.",
    ),
    Rule(
        *("training", NOT_GOOD, lambda f: f.stopped),
        "The training is not at its end: it stands at step {f.step:,} of {f.steps:,}.",
    ),
    Rule(
        *("training", NOT_GOOD, lambda f: f.falls),
        "Held-out scores still fall: by {f.trend.change} {f.unit} {f.trend}.",
    ),
    Rule(
        *("training", GOOD, lambda f: f.fell),
        "Held-out scores have all but levelled off: they fell by {f.trend.change} {f.unit} {f.trend}, the last "
        "time by {f.trend.drop:.3f}.",
    ),
    Rule(
        *("training", NOT_GOOD, lambda f: f.rises),
        "Held-out scores rise again: by {f.trend.change} {f.unit} {f.trend}; the best were of step {f.best:,}.",
    ),
    Rule(
        *("training", GOOD, lambda f: f.trend is not None),
        "Held-out scores have levelled off: they moved by {f.trend.change} {f.unit} {f.trend}.",
    ),
    Rule(
        *("training", GOOD, lambda f: f.step is not None),
        "Whether scores still fall is not known: a trend takes {f.needed} held-out scores, there are {f.evaluations}.",
    ),
    Rule(
        *("training", GOOD, lambda f: True),
        "How the training went is not known: no metrics.jsonl is beside the model.",
    ),
    Rule(
        *("overfitting", NOT_GOOD, lambda f: f.memorises and f.rises),
        "It overfits: held-out images take {f.gap} {f.unit} more than training images, and their scores rise.",
    ),
    Rule(
        *("overfitting", NOT_GOOD, lambda f: f.memorises),
        "Training images are known better: held-out images take {f.gap} {f.unit} more.",
    ),
    Rule(
        *("overfitting", GOOD, lambda f: f.generalises),
        "No overfitting is seen: held-out images take {f.gap:+} {f.unit} beside training images.",
    ),
    Rule(
        *("yardstick", GOOD, lambda f: f.side == 1),
        "The model is ahead of a Gaussian that is fitted to the training images, by {f.advantage} {f.unit}.",
    ),
    Rule(
        *("yardstick", NOT_GOOD, lambda f: f.side == -1),
        "The model is behind a Gaussian that is fitted to the training images, by {f.advantage} {f.unit}.",
    ),
    Rule(
        *("yardstick", NOT_GOOD, lambda f: f.side == 0),
        "The model is level with a Gaussian that is fitted to the training images, {f.advantage} {f.unit} apart.",
    ),
    Rule(
        *("samples", GOOD, lambda f: f.near),
        "Samples are as near to the training images as held-out ones: {f.distance}.",
    ),
    Rule(
        *("samples", NOT_GOOD, lambda f: f.far),
        "Samples are {f.distance.ratio:.2g} times as far from the training images as held-out ones: {f.distance}.",
    ),
    Rule(
        *("classes", NOT_GOOD, lambda f: f.disagrees),
        "Only {f.agreement.value:.1%} of samples show the class that was asked for, to a classifier that is right "
        "about {f.agreement.expected:.1%} of held-out images.",
    ),
    Rule(
        *("classes", GOOD, lambda f: f.agreement is not None),
        "{f.agreement.value:.1%} of samples show the class that was asked for, to a classifier that is right about "
        "{f.agreement.expected:.1%} of held-out images.",
    ),
    Rule(
        *("classes", GOOD, lambda f: f.accuracy is not None and f.accuracy.above),
        "Classes show: {f.accuracy.value:.1%} of {f.accuracy.things:,} held-out images are likeliest under their own; "
        "{f.accuracy.expected:.1%} are of the most frequent one.",
    ),
    Rule(
        *("classes", NOT_GOOD, lambda f: f.accuracy is not None),
        "Classes do not show: {f.accuracy.value:.1%} of {f.accuracy.things:,} held-out images are likeliest under "
        "their own; {f.accuracy.expected:.1%} are of the most frequent one.",
    ),
    Rule(
        *("typicality", NOT_GOOD, lambda f: f.surprises == 1),
        "Held-out images are not typical of the model: they take {f.atypical} {f.unit} more than its own samples.",
    ),
    Rule(
        *("typicality", NOT_GOOD, lambda f: f.surprises == -1),
        "The model is wider than the images: held-out ones take {f.atypical} {f.unit} less than its own samples.",
    ),
    Rule(
        *("typicality", GOOD, lambda f: f.surprises == 0),
        "Held-out images are typical of the model: they take {f.atypical:+} {f.unit} beside its own samples.",
    ),
)

NEXT: Sequence[tuple[Condition, str]] = (
    (lambda f: not f.finite, "Next: a lower rate (--lr) or stricter clipping (--clip-norm), from the start."),
    (lambda f: f.problem is not None, "Next: name the place of its images by --data, where they have moved."),
    (
        lambda f: f.skipped * 100 > (f.step or 0),
        "Next: a lower rate (--lr) or stricter clipping (--clip-norm): more than one step in a hundred did not count.",
    ),
    (lambda f: f.stopped, "Next: go on with “tarflow train --resume”."),
    (
        lambda f: f.memorises and f.rises,
        "Next: more images, --flip or --crop-padding where they suit the data, a smaller model, or fewer steps.",
    ),
    (lambda f: f.falls, "Next: train longer, by “tarflow train --resume --steps” and a larger number."),
    (
        lambda f: f.side in (0, -1),
        "Next: look whether images and levels are what they should be, then train longer, or at another rate (--lr).",
    ),
    (lambda f: f.memorises, "Next: more images, or --flip and --crop-padding where they suit the data."),
    (lambda f: f.distance is None, "Next: “tarflow quality”, which was not run yet, measures what samples are worth."),
    (lambda f: f.far, "Next: “tarflow sweep” looks for guidance and denoising under which samples are nearer."),
    (lambda f: True, "Nothing in these figures asks for a next step."),
)


def verdict(subject: Subject) -> Parts:
    """The section: what the figures of a run say."""
    return list(sentences(findings(subject)))


def sentences(found: Findings) -> list[str]:
    """At most `MOST` sentences, by topic, the last on what to do next."""
    first: dict[Topic, Rule] = {}
    for rule in RULES:
        if rule.topic not in first and rule.when(found):
            first[rule.topic] = rule
    chosen = sorted(first.values(), key=lambda rule: rule.good)[: MOST - 1]
    said = [rule.text.format(f=found) for rule in RULES if rule in chosen]
    return [*said, next(text for when, text in NEXT if when(found))]
