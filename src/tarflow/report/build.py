"""From runs to a report on disk: every section computed, or the reason why there is none, then page and pictures.

The sections on several runs, their figures side by side and samples of each, are here, too."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from markupsafe import Markup

from tarflow import __version__, storage
from tarflow.checkpoint import Run, open_run
from tarflow.evaluation.quality.judge import kept_quality
from tarflow.pretrained import name_of
from tarflow.report import facts, likelihood, samples, sweep, verdict
from tarflow.report.facts import parameters_of
from tarflow.report.likelihood import LABELS, advantage, unit_of
from tarflow.report.parts import TEMPLATES, Figure, Parts, Section, Strip, Table, png, sheet
from tarflow.report.samples import spread
from tarflow.report.subject import Settings, Subject, Unavailable, Watch
from tarflow.report.words import duration, quoted
from tarflow.run_data import check_output
from tarflow.storage import check_vacant

Asked = TypeVar("Asked", Subject, list[Subject])  # what a section is about

PAGE = "report.html"
PICTURES = "report-pictures"
MARK = Markup('<meta name="generator" content="tarflow report">')  # by which a page of ours is known

# A new section is a function of the subject and a line here. It raises Unavailable where it has nothing to show.
SECTIONS: Sequence[tuple[str, str, Callable[[Subject], Parts]]] = (
    ("verdict", "In short", verdict.verdict),
    ("trained", "What was trained on what", facts.trained),
    ("architecture", "Architecture", facts.architecture),
    ("curves", "Training curves", facts.curves),
    ("likelihood", "Held-out likelihood", likelihood.likelihood),
    ("samples", "Samples", samples.samples),
    ("quality", "What samples are worth", sweep.quality),
    ("sweep", "Guidance and denoising, measured", sweep.sweep),
    ("guidance", "Guidance", samples.guidance),
    ("denoising", "Noisy and denoised", samples.denoising),
    ("trace", "From noise to image", samples.traces),
    ("neighbours", "Nearest training images", samples.neighbours),
    ("extremes", "The most and the least likely", likelihood.extremes),
    ("maps", "Where the likelihood comes from", likelihood.maps),
)


def write_report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    settings: Settings | None = None,
    device: torch.device | str = "cpu",
    watch: Watch | None = None,
) -> Path:
    """Write `out`/report.html and its pictures as PNG files in `out`/report-pictures.

    Args:
        paths: runs, hub directories or single checkpoints.
        out: a directory, made where it is missing; None is `report` in the first of the runs. The page is written last
            and whole or not at all. An older report there is replaced, pictures and all.
        watch: what is told of the sections, of a report that is replaced, and of progress.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError, ValueError: a path that is no run, or no path at all; images that are neither grey nor RGB.
        FileExistsError: what would be replaced in `out` is not of an older report.
    """
    if not paths:
        raise ValueError("expected at least one run to report on")
    runs = [open_run(path, device) for path in paths]
    for run in runs:
        if run.config.model.channels not in (1, 3):
            raise ValueError(f"{run.path}: expected images of 1 or 3 channels, got {run.config.model.channels}")
    settings, watch = settings or Settings(), watch or Watch()
    subjects = subjects_of(runs, settings, watch)
    for subject in subjects:
        _ = subject.metrics  # what cannot be read is said before anything is written
    if out is None and name_of(runs[0].path) is not None:
        raise ValueError(f"{paths[0]}: comes with the package, or from the hub: give a directory by --out")
    out = Path(paths[0]) / "report" if out is None else Path(out)
    for run in runs:
        check_output(run, "--out", out)
    if holds_report(out):
        watch.say(f"{out / PAGE}: replaced by this report, with its pictures")
    out.mkdir(parents=True, exist_ok=True)
    chapters = [(subject, _sections(subject)) for subject in subjects]
    opening, closing = [], []
    if len(subjects) > 1:
        opening = [_section("runs", "The runs side by side", compared_runs, subjects)]
        closing = [_section("resolutions", "Samples at several resolutions", resolutions, subjects)]
    with storage.replacing_directory(out / PICTURES) as pictures:
        for prefix, sections in [("", closing), *((subject.prefix, sections) for subject, sections in chapters)]:
            for figure in (part for section in sections for part in section.parts if isinstance(part, Figure)):
                (pictures / f"{prefix}{figure.name}.png").write_bytes(png(sheet(figure.strips)))
    page = TEMPLATES.get_template("page.html").render(
        chapters=chapters,
        opening=opening,
        closing=closing,
        headline=facts.headline,
        mark=MARK,
        version=__version__,
    )
    storage.write_text(out / PAGE, page + "\n")
    return out / PAGE


def holds_report(out: Path) -> bool:
    """Whether there is an older report in `out`. FileExistsError where something else goes by one of its names."""
    pictures = out / PICTURES
    check_vacant(pictures, ours=[p.name for p in pictures.glob("*.png")])
    if not (out / PAGE).exists():
        return False
    if not (out / PAGE).is_file() or MARK not in (out / PAGE).read_text(encoding="utf-8", errors="replace"):
        raise FileExistsError(f"{out / PAGE}: not written by `tarflow report`; give another --out")
    return True


def subjects_of(runs: Sequence[Run], settings: Settings, watch: Watch | None = None) -> list[Subject]:
    """The runs with prefixes that keep their ids and files apart; none where there is one run."""
    if len(runs) == 1:
        return [Subject(runs[0], settings, watch=watch)]
    subjects: list[Subject] = []
    for number, run in enumerate(runs, 1):
        name = re.sub(r"[^a-z0-9]+", "-", Subject(run, settings).name.lower()).strip("-") or "run"
        while any(s.prefix == f"{name}-" for s in subjects):
            name = f"{name}-{number}"
        subjects.append(Subject(run, settings, f"{name}-", watch))
    return subjects


def _sections(subject: Subject) -> list[Section]:
    sections = []
    for name, title, compute in SECTIONS:
        subject.watch.say(f"{subject.name}: {title.lower()}")
        sections.append(_section(f"{subject.prefix}{name}", title, compute, subject))
    return sections


def _section(name: str, title: str, compute: Callable[[Asked], Parts], asked: Asked) -> Section:
    try:
        return Section(name, title, compute(asked))
    except Unavailable as reason:
        return Section(name, title, [str(reason)])


def compared_runs(subjects: Sequence[Subject]) -> Parts:
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
