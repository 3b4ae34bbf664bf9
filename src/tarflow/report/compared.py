"""The sections that are about several runs: their figures side by side, and samples of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tarflow.evaluation.quality.judge import kept_quality
from tarflow.report.architecture import parameters_of
from tarflow.report.content import Figure, Parts, Strip
from tarflow.report.facts import LABELS, advantage, duration, quoted, unit
from tarflow.report.figures import how
from tarflow.report.markup import table
from tarflow.report.subject import Subject, Unavailable

ROWS = ("data", "images", "parameters", "trained for", "held out", "scored by", "beside the Gaussian", "samples")


def runs(subjects: Sequence[Subject]) -> Parts:
    """A column a run: what it is, how well it scores, what its samples are worth."""
    rows = zip(ROWS, *(_column(subject) for subject in subjects), strict=True)
    measures = {str(subject.likelihoods[0].measure) for subject in subjects if _scored(subject)}
    sources = {subject.run.config.data.source for subject in subjects if subject.run.config.data}
    text = (
        "Scores have their standard errors. Samples have the first figure that “tarflow quality” measured, if it did."
    )
    if len(measures) > 1:
        text += f" The scores are not comparable: they are of different measures ({'; '.join(sorted(measures))})."
    if len(sources) > 1:
        text += " The runs are of different data: no figure of one is better or worse than that of another."
    head = ["run", *(subject.name for subject in subjects)]
    return [table(head, rows, f"{len(subjects)} runs"), text]


def resolutions(subjects: Sequence[Subject]) -> Parts:
    """Figure 1 of the paper: samples of every run, the smallest images first."""
    strips, missing = [], []
    for subject in sorted(subjects, key=lambda s: s.run.config.model.image_shape):
        height, width = subject.run.config.model.image_shape
        try:
            drawn = subject.samples
        except Unavailable as reason:
            missing.append(f"{subject.name}: {reason}")
            continue
        # Spread over the classes, and as many as a row has.
        count = min(subject.settings.images, len(drawn))
        chosen = torch.linspace(0, len(drawn) - 1, count, device="cpu", dtype=torch.float32).round().long()
        alt = f"{len(chosen)} samples of {subject.name}, {height} by {width} pixels."
        strips.append(Strip(f"{subject.name}, {height}×{width}, {how(subject)}", subject.shown(drawn[chosen]), alt))
    if not strips:
        raise Unavailable(" ".join(missing))
    sizes = {s.run.config.model.image_shape for s in subjects}
    caption = f"Samples of {len(strips)} models, seed {subjects[0].settings.seed}, "
    caption += "the smallest images first." if len(sizes) > 1 else "all of one size here."
    return [Figure("resolutions", strips, caption), *missing]


def _scored(subject: Subject) -> bool:
    try:
        return bool(subject.likelihoods)
    except Unavailable:
        return False


def _column(subject: Subject) -> list[str]:
    """What stands in the rows `ROWS`."""
    model, data = subject.run.config.model, subject.run.config.data
    height, width = model.image_shape
    timed = [entry for entry in subject.metrics if "seconds" in entry]
    trained = f"{timed[-1]['step']:,} steps, {duration(timed[-1]['seconds'])}" if timed else "—"
    row = [data.source if data else "—", f"{model.channels}×{height}×{width}"]
    row += [f"{parameters_of(subject.run.flow):,}", trained]
    if _scored(subject):
        best = subject.likelihoods[0]
        row += [f"{quoted(best.mean, best.standard_error)} {unit(best)}", LABELS[best.labels], advantage(best)]
    else:
        row += ["—"] * 3
    figures = [(name, f) for entry in kept_quality(subject.run).values() for name, f in entry["figures"].items()]
    row.append(f"{figures[0][0]} {figures[0][1]['value']:.4g} (N = {figures[0][1]['samples']})" if figures else "—")
    return row
