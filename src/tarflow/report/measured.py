"""The sections of what other commands measured and left in the run: quality of samples, and a sweep over settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tarflow.checkpoint import weights_digest
from tarflow.config import from_dict
from tarflow.evaluation.quality.judge import KINDS, LOWER_IS_BETTER, Figure, Kind, kept_quality
from tarflow.evaluation.quality.sweep import SWEEP, Row, edges, read_sweep
from tarflow.report.content import Drawing, Parts
from tarflow.report.markup import table
from tarflow.report.subject import Subject, Unavailable
from tarflow.report.sweep import sweep_panels
from tarflow.sampling.setting import Setting

OF_PIXELS = {  # what `tarflow quality` says besides distances of features: (what it is, what is good)
    "agreement": ("share of samples of the class they were meant to show", "1, or as held-out images"),
    "classifier_accuracy": ("the same of held-out images", ""),
    "diversity": ("distance between samples of a class over that of real ones", "about 1"),
    "novelty": ("distance to the nearest training image over that of held-out images", "about 1"),
}
KIND_OF = {"FID": "FD", "KID": "KD"}


def quality(subject: Subject) -> Parts:
    """Every figure of `tarflow quality`, beside what held-out images score."""
    kept = kept_quality(subject.run)
    if not kept:
        raise Unavailable(
            "Nothing was measured for these weights: “tarflow quality RUN” measures what samples are worth."
        )
    parts: Parts = []
    for name, entry in kept.items():
        figures = {figure: Figure.from_dict(values) for figure, values in entry["figures"].items()}
        rows = [[figure, with_error(f), f"{f.floor:.4g}", _better(figure)] for figure, f in figures.items()]
        first = next(iter(figures.values()))
        head = ["figure", f"{first.samples} samples", f"{first.floor_samples} held-out images", "better is"]
        caption = f"On features of {name}: {_text(entry, 'extractor', 'description')}"
        parts.append(table(head, rows, caption, style="numbers"))
        text = f"Drawn with {_setting(entry)}, seed {entry.get('seed', '?')}."
        if first.floor_samples < first.samples:
            text += " Figures depend on how many images there are: fewer held-out ones have a higher floor."
        parts.append(text)
    newest = entry
    rows = [
        [what, f"{newest[key]:.3f}", good]
        for key, (what, good) in OF_PIXELS.items()
        if isinstance(newest.get(key), float | int)
    ]
    if rows:
        parts.append(table(["of the pixels", "value", "good is"], rows, "By a classifier, and by distances of pixels"))
    return parts


def sweep(subject: Subject) -> Parts:
    """The table and the plot of `tarflow sweep`."""
    run = subject.run
    stored = read_sweep(run.path / SWEEP / "sweep.json")
    if stored is None or not any(row.figures for row in stored.rows):
        raise Unavailable("Nothing was measured: “tarflow sweep RUN” finds the best guidance and denoising.")
    if stored.key.get("weights") != weights_digest(run.path):
        raise Unavailable("The sweep in this run was measured for other weights: “tarflow sweep RUN” measures again.")
    by = str(stored.more.get("by", ""))
    first = next(row for row in stored.rows if row.figures)
    name = by if by in first.figures else next(iter(first.figures))
    kind = kind_of(name)
    sign = 1 if kind in LOWER_IS_BETTER else -1
    best = min((r for r in stored.rows if name in r.figures), key=lambda row: sign * row.figures[name].value)
    figure = best.figures[name]
    text = f"Best by {name} ({_better(name)} is better) of {len(stored.rows)}: {best.setting}, {figure.value:.4g}."
    again = stored.more.get("again")
    if isinstance(again, dict) and isinstance(again.get(name), dict) and isinstance(again[name].get("value"), float):
        text += f" The best of many is flattered by the choice: with other noise it has {again[name]['value']:.4g}."
    else:
        text += " The sweep was interrupted: what it had measured by then."
    text += f" Held-out images have {figure.floor:.4g}."
    at_edge = [f"{edge[0].upper()}{edge[1:]}." for edge in edges([row.setting for row in stored.rows], best.setting)]
    panels = sweep_panels(stored.rows, name, kind, f"{subject.prefix}sweep-panel")
    caption = f"{name} over the scale of the guidance: {'; '.join(heading for heading, _ in panels)}."
    return [Drawing([chart for _, chart in panels], caption), text, *at_edge, _table(stored.rows, best)]


def kind_of(name: str) -> Kind:
    """Which kind a figure is of, by its name: "FD-EffNetLite0", "KID-unverified"."""
    found = name.partition("-")[0]
    found = KIND_OF.get(found, found)
    return next((kind for kind in KINDS if kind == found), "FD")


def with_error(figure: Figure) -> str:
    """A figure, and its standard error where it has one."""
    return f"{figure.value:.4g}" + ("" if figure.standard_error is None else f" ± {figure.standard_error:.2g}")


def _table(rows: Sequence[Row], best: Row) -> str:
    names = list(best.figures)
    cells = []
    for row in rows:
        title = f"{row.setting} (best)" if row is best else str(row.setting)
        figures = [with_error(row.figures[name]) if name in row.figures else "failed" for name in names]
        cells.append([title, *figures])
    return table(["setting", *names], cells, f"{len(rows)} settings, {best.figures[names[0]].samples} samples each")


def _better(name: str) -> str:
    return "lower" if kind_of(name) in LOWER_IS_BETTER else "higher"


def _setting(entry: dict[str, Any]) -> str:
    """The setting of a measurement in words."""
    return str(from_dict(Setting, entry["setting"]))


def _text(entry: dict[str, Any], *keys: str) -> str:
    found: Any = entry
    for key in keys:
        found = found.get(key, "") if isinstance(found, dict) else ""
    return str(found)
