"""The sections that are about several runs: their figures side by side, and samples of each."""

from __future__ import annotations

from collections.abc import Sequence

from tarflow.evaluation.quality.judge import kept_quality
from tarflow.report.architecture import parameters_of
from tarflow.report.likelihood import LABELS, advantage, unit_of
from tarflow.report.parts import Figure, Parts, Strip, Table
from tarflow.report.samples import spread
from tarflow.report.subject import Subject, Unavailable
from tarflow.report.words import duration, quoted


def runs(subjects: Sequence[Subject]) -> Parts:
    """A column a run: what it is, how well it scores, what its samples are worth."""
    columns = [_column(subject) for subject in subjects]
    rows = [[name, *(column.get(name, "—") for column in columns)] for name in _ROWS]
    measures = {str(subject.likelihood.scoring.measure) for subject in subjects if subject.likelihood}
    sources = {subject.run.config.data.source for subject in subjects if subject.run.config.data}
    text = (
        "Scores have their standard errors. Samples have the first figure that “tarflow quality” measured, if it did."
    )
    if len(measures) > 1:
        text += f" The scores are not comparable: they are of different measures ({'; '.join(sorted(measures))})."
    if len(sources) > 1:
        text += " The runs are of different data: no figure of one is better or worse than that of another."
    return [Table(f"{len(subjects)} runs", ["run", *(subject.name for subject in subjects)], rows), text]


_ROWS = ("data", "images", "parameters", "trained for", "held out", "scored by", "beside the Gaussian", "samples")


def _column(subject: Subject) -> dict[str, str]:
    """What stands in the rows `_ROWS`, as far as it is known."""
    model, data = subject.run.config.model, subject.run.config.data
    height, width = model.image_shape
    found = {"images": f"{model.channels}×{height}×{width}", "parameters": f"{parameters_of(subject.run.flow):,}"}
    if data:
        found["data"] = data.source
    timed = [entry for entry in subject.metrics if "seconds" in entry]
    if timed:
        found["trained for"] = f"{timed[-1]['step']:,} steps, {duration(timed[-1]['seconds'])}"
    if (best := subject.likelihood) is not None:
        found["held out"] = f"{quoted(best.mean, best.standard_error)} {unit_of(best.scoring.measure.figure)}"
        found |= {"scored by": LABELS[best.scoring.policy], "beside the Gaussian": advantage(best)}
    figures = [(name, f) for entry in kept_quality(subject.run).values() for name, f in entry["figures"].items()]
    if figures:
        name, figure = figures[0]
        found["samples"] = f"{name} {figure['value']:.4g} (N = {figure['samples']})"
    return found


def resolutions(subjects: Sequence[Subject]) -> Parts:
    """Figure 1 of the paper: samples of every run, the smallest images first."""
    strips, missing = [], []
    for subject in sorted(subjects, key=lambda s: s.run.config.model.image_shape):
        height, width = subject.run.config.model.image_shape
        try:
            chosen = spread(subject.samples, subject.settings.images)
        except Unavailable as reason:
            missing.append(f"{subject.name}: {reason}")
            continue
        alt = f"{len(chosen)} samples of {subject.name}, {height} by {width} pixels."
        strips.append(Strip(f"{subject.name}, {height}×{width}, {subject.setting}", subject.shown(chosen), alt))
    if not strips:
        raise Unavailable(" ".join(missing))
    sizes = {s.run.config.model.image_shape for s in subjects}
    caption = f"Samples of {len(strips)} models, seed {subjects[0].settings.seed}, "
    caption += "the smallest images first." if len(sizes) > 1 else "all of one size here."
    return [Figure("resolutions", strips, caption), *missing]
