"""What samples are worth: the sections on `tarflow quality` and `tarflow sweep`, and the table and plot of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from tarflow.checkpoint import weights_digest
from tarflow.config import from_dict
from tarflow.evaluation.quality.judge import KINDS, LOWER_IS_BETTER, Figure, Kind, kept_quality
from tarflow.evaluation.quality.sweep import SWEEP, Row, edges, read_sweep
from tarflow.kept import kept_file
from tarflow.report.charts import Series, document, line_chart
from tarflow.report.parts import Drawing, Parts, Table
from tarflow.report.subject import Subject, Unavailable
from tarflow.sampling.setting import Setting

STYLES = {"linear": "first", "constant": "second"}
KIND_OF = {"FID": "FD", "KID": "KD"}


def sweep(subject: Subject) -> Parts:
    """The table and the plot of `tarflow sweep`, where it measured these weights."""
    run = subject.run
    stored = read_sweep(kept_file(run, f"{SWEEP}/sweep.json"))
    if stored is None or not any(row.figures for row in stored.rows):
        raise Unavailable("Nothing was measured: “tarflow sweep RUN” finds the best guidance and denoising.")
    if stored.key.get("weights") != weights_digest(run.path):
        raise Unavailable("The sweep in this run was measured for other weights: “tarflow sweep RUN” measures again.")
    first = next(row for row in stored.rows if row.figures)
    by = str(stored.more.get("by", ""))
    name = by if by in first.figures else next(iter(first.figures))
    sign = 1 if better_is(name) == "lower" else -1
    best = min((r for r in stored.rows if name in r.figures), key=lambda row: sign * row.figures[name].value)
    figure = best.figures[name]
    text = f"Best by {name} ({better_is(name)} is better) of {len(stored.rows)}: {best.setting}, {figure.value:.4g}."
    again: Any = stored.more.get("again")
    if isinstance(again, dict) and isinstance(again.get(name), dict) and isinstance(again[name].get("value"), float):
        text += f" The best of many is flattered by the choice: with other noise it has {again[name]['value']:.4g}."
    else:
        text += " The sweep was interrupted: what it had measured by then."
    text += f" Held-out images have {figure.floor:.4g}."
    at_edge = [f"{edge[0].upper()}{edge[1:]}." for edge in edges([row.setting for row in stored.rows], best.setting)]
    panels = sweep_panels(stored.rows, name, f"{subject.prefix}sweep-panel")
    caption = f"{name} over the scale of the guidance: {'; '.join(heading for heading, _ in panels)}."
    names = list(best.figures)
    rows = [[f"{row.setting} (best)" if row is best else str(row.setting), *_cells(row, names)] for row in stored.rows]
    table = Table(f"{len(rows)} settings, {figure.samples} samples each", ["setting", *names], rows)
    return [Drawing([chart for _, chart in panels], caption), text, *at_edge, table]


def kind_of(name: str) -> Kind:
    """Which kind a figure is of, by its name: "FD-EffNetLite0", "KID"."""
    found = name.partition("-")[0]
    found = KIND_OF.get(found, found)
    return next((kind for kind in KINDS if kind == found), "FD")


def better_is(name: str) -> str:
    """Whether the lower or the higher figure of this name is the better one."""
    return "lower" if kind_of(name) in LOWER_IS_BETTER else "higher"


def with_error(figure: Figure) -> str:
    """A figure, and its standard error where it has one; fewer digits than four hide what a sweep is for."""
    return f"{figure.value:.4g}" + ("" if figure.standard_error is None else f" ± {figure.standard_error:.2g}")


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    """The figures of a row, or the reason why there are none and empty cells."""
    if not row.figures:
        return [f"failed: {row.failed}", *("" for _ in names[1:])]
    return [with_error(row.figures[name]) if name in row.figures else "—" for name in names]


def sweep_table(rows: Sequence[Row], best: Row) -> str:
    """The rows as a Markdown table, a column for each figure, the best row in bold, and below what real images have."""
    names = next((list(row.figures) for row in rows if row.figures), [])
    figures = [best.figures[name] for name in names]
    lines = [["setting", *names], ["---"] * (len(names) + 1)]
    lines += [[f"**{row.setting}**" if row is best else str(row.setting), *_cells(row, names)] for row in rows]
    count = figures[0].floor_samples
    lines.append([f"held-out images ({count})", *(f"{figure.floor:.4g}" for figure in figures)])
    if count < figures[0].samples:
        same = (f"{figure.value_at_floor_samples:.4g}" for figure in figures)
        lines.append([f"best, as many samples ({count})", *same])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def sweep_chart(rows: Sequence[Row], name: str) -> str:
    """One figure over the scale of the guidance, a panel for each rule, temperature and denoising: an SVG document.

    Settings without guidance are the point at scale 0 of every panel with the same denoising. What held-out images
    score is drawn where there are as many of them as samples.

    Raises ValueError where no row has the figure.
    """
    return document(sweep_panels(rows, name, "panel"))


def sweep_panels(rows: Sequence[Row], name: str, prefix: str) -> list[tuple[str, Markup]]:
    """The panels of `sweep_chart`: what each shows, and its chart, whose ids begin with `prefix`.

    Raises ValueError where no row has the figure.
    """
    measured = [row for row in rows if name in row.figures]
    if not measured:
        raise ValueError(f"{name}: no row of the sweep has this figure")
    panels: dict[tuple[str, float, float | None], None] = {}
    for row in measured:
        setting = row.setting
        guided = any(r.setting.guidance.scale and r.setting.denoise == setting.denoise for r in measured)
        if setting.guidance.scale or not guided:
            panels[setting.guidance.rule, setting.guidance.temperature, setting.denoise] = None
    return [_panel(measured, name, *key, f"{prefix}{number}") for number, key in enumerate(panels)]


def _panel(
    rows: Sequence[Row], name: str, rule: str, temperature: float, denoise: float | None, chart_id: str
) -> tuple[str, Markup]:
    series: list[Series] = []
    for schedule, style in STYLES.items():
        points = []
        for row in rows:
            g = row.setting.guidance
            here = (g.rule, g.temperature, g.schedule) == (rule, temperature, schedule) or g.scale == 0
            if here and row.setting.denoise == denoise:
                points.append((g.scale, row.figures[name].value))
        if any(scale for scale, _ in points) or (schedule == "linear" and points and not series):
            series.append(Series(schedule, sorted(points), style, dots=True))
    if len(series) > 1 and not any(scale for scale, _ in series[0].points):
        series = series[1:]  # the linear schedule was not tried: its only point is one of the constant one too
    figure = rows[0].figures[name]
    if figure.floor_samples == figure.samples:
        scales = [scale for s in series for scale, _ in s.points]
        series.append(Series("held out", [(min(scales), figure.floor), (max(scales), figure.floor)], "third"))
    warm = "" if temperature == 1 else f", temperature {temperature:g}"
    cleaned = "not denoised" if denoise is None else f"denoised with σ={denoise:g}"
    heading = f"rule {rule}{warm}, {cleaned}"
    label = f"{name} ({better_is(name)} is better, N = {figure.samples})"
    chart = line_chart(chart_id, series, title=f"{name}: {heading}", x_label="scale of the guidance", y_label=label)
    return heading, chart


OF_PIXELS = {  # what is said besides distances of features: (what it is, what is good)
    "agreement": ("share of samples of the class they were meant to show", "1, or as held-out images"),
    "classifier_accuracy": ("the same of held-out images", ""),
    "diversity": ("distance between samples of a class over that of real ones", "about 1"),
    "novelty": ("distance to the nearest training image over that of held-out images", "about 1"),
}


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
        rows = [[figure, with_error(f), f"{f.floor:.4g}", better_is(figure)] for figure, f in figures.items()]
        first = next(iter(figures.values()))
        head = ["figure", f"{first.samples} samples", f"{first.floor_samples} held-out images", "better is"]
        extractor = entry.get("extractor")
        description = extractor.get("description", "") if isinstance(extractor, dict) else ""
        parts.append(Table(f"On features of {name}: {description}", head, rows, numbers=True))
        text = f"Drawn with {from_dict(Setting, entry['setting'])}, seed {entry.get('seed', '?')}."
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
        parts.append(Table("By a classifier, and by distances of pixels", ["of the pixels", "value", "good is"], rows))
    return parts
