"""From runs to a report on disk: every section computed, or the reason why there is none, then page and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tarflow import __version__, storage
from tarflow.checkpoint import Run, open_run
from tarflow.report import extremes, facts, figures
from tarflow.report.content import Figure, Parts, Section, Strip, png, sheet
from tarflow.report.page import Chapter, page
from tarflow.report.subject import Say, Settings, Subject, Unavailable, slug

PAGE = "report.html"
PICTURES = "report-pictures"

# A new section is a function of the subject and a line here. It raises Unavailable where it has nothing to show.
SECTIONS: Sequence[tuple[str, str, Callable[[Subject], Parts]]] = (
    ("trained", "What was trained on what", facts.trained),
    ("architecture", "Architecture", facts.architecture),
    ("curves", "Training curves", facts.curves),
    ("likelihood", "Held-out likelihood", facts.likelihood),
    ("samples", "Samples", figures.samples),
    ("guidance", "Guidance", figures.guidance),
    ("denoising", "Noisy and denoised", figures.denoising),
    ("trace", "From noise to image", figures.traces),
    ("neighbours", "Nearest training images", figures.neighbours),
    ("extremes", "The most and the least likely", extremes.extremes),
    ("maps", "Where the likelihood comes from", extremes.maps),
)


def write_report(
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    settings: Settings | None = None,
    device: torch.device | str = "cpu",
    say: Say | None = None,
) -> Path:
    """Write `out`/report.html and its pictures as PNG files in `out`/report-pictures.

    Args:
        paths: runs, hub directories or single checkpoints.
        out: a directory, made where it is missing; None is `report` in the first of the runs. The page is written last
            and whole or not at all, and an older one is replaced.
        say: called with a line before each section.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError, ValueError: a path that is no run, or no path at all; images that are neither grey nor RGB.
    """
    if not paths:
        raise ValueError("expected at least one run to report on")
    runs = [open_run(path, device) for path in paths]
    for run in runs:
        if run.config.model.channels not in (1, 3):
            raise ValueError(f"{run.path}: expected images of 1 or 3 channels, got {run.config.model.channels}")
    subjects = subjects_of(runs, settings or Settings())
    for subject in subjects:
        _ = subject.metrics  # what cannot be read is said before anything is written
    out = Path(paths[0]) / "report" if out is None else Path(out)
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    chapters = [_chapter(subject, say or (lambda text: None)) for subject in subjects]
    closing = [_section("resolutions", "Samples at several resolutions", lambda: resolutions(subjects))]
    if len(subjects) == 1:
        closing = []
    for section in [*closing, *(s for chapter in chapters for s in chapter.sections)]:
        for part in section.parts:
            if isinstance(part, Figure):
                _write_figure(out / PICTURES, part, section.name)
    storage.write_text(out / PAGE, page(chapters, closing, _footer(subjects)))
    return out / PAGE


def subjects_of(runs: Sequence[Run], settings: Settings) -> list[Subject]:
    """The runs with prefixes that keep their ids and files apart; none where there is one run."""
    if len(runs) == 1:
        return [Subject(runs[0], settings)]
    subjects: list[Subject] = []
    taken: set[str] = set()
    for number, run in enumerate(runs, 1):
        prefix = slug(Subject(run, settings).name)
        if prefix in taken:
            prefix = f"{prefix}-{number}"
        taken.add(prefix)
        subjects.append(Subject(run, settings, f"{prefix}-"))
    return subjects


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
        chosen = torch.linspace(0, len(drawn) - 1, min(subject.settings.images, len(drawn))).round().long()
        alt = f"{len(chosen)} samples of {subject.name}, {height} by {width} pixels."
        strips.append(Strip(f"{subject.name}, {height}×{width}", subject.shown(drawn[chosen]), alt))
    if not strips:
        raise Unavailable(" ".join(missing))
    sizes = {s.run.config.model.image_shape for s in subjects}
    caption = f"Samples of {len(strips)} models, unguided, seed {subjects[0].settings.seed}, "
    caption += "the smallest images first." if len(sizes) > 1 else "all of one size here."
    return [Figure("resolutions", strips, caption), *missing]


def _chapter(subject: Subject, say: Say) -> Chapter:
    sections = []
    for name, title, compute in SECTIONS:
        say(f"{subject.name}: {title.lower()}")
        # A default argument, because a lambda would look its names up when the loop has moved on.
        sections.append(_section(f"{subject.prefix}{name}", title, lambda f=compute: f(subject)))  # type: ignore[misc]
    model = subject.run.config.model
    height, width = model.image_shape
    kind = f"{model.num_classes} classes" if model.num_classes else "no classes"
    lead = (
        f"A normalizing flow (TarFlow) on {height}×{width} images, {kind}, {len(model.layers)} blocks of width "
        f"{model.width}."
    )
    return Chapter(subject.prefix.rstrip("-") or "run", subject.name, lead, facts.headline(subject), sections)


def _section(name: str, title: str, compute: Callable[[], Parts]) -> Section:
    try:
        return Section(name, title, compute())
    except Unavailable as reason:
        return Section(name, title, [str(reason)])


def _write_figure(folder: Path, figure: Figure, section: str) -> None:
    """One PNG file a figure, its strips below each other."""
    prefix = section.removesuffix(section.rpartition("-")[2])  # that of the run
    with storage.replacing_file(folder / f"{prefix}{figure.name}.png") as temporary:
        temporary.write_bytes(png(sheet([strip.images for strip in figure.strips])))


def _footer(subjects: Sequence[Subject]) -> str:
    settings = subjects[0].settings
    return (
        f"Made by tarflow {__version__} (seed {settings.seed}). Every number and picture was computed from the "
        "weights, the data and the metrics of the run. TarFlow: Zhai et al., arXiv 2412.06329."
    )
