"""A sweep over settings as a table and as one SVG file that stands alone."""

from __future__ import annotations

from collections.abc import Sequence

from tarflow.evaluation.quality.judge import LOWER_IS_BETTER, Kind
from tarflow.evaluation.quality.sweep import Row
from tarflow.report.charts import HEIGHT, WIDTH, Series, line_chart
from tarflow.report.markup import Markup, element, join
from tarflow.report.style import THEMES
from tarflow.sampling.setting import Setting

HEADING = 30  # units above a panel for what it shows
COLUMNS = 2  # panels side by side
STYLES = {"linear": "first", "constant": "second"}

_SHEET = """svg { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
text { fill: var(--text); } .name { fill: var(--muted); } .heading { font-weight: 600; }
.ground { fill: var(--panel); } .gridline { stroke: var(--rule); } .axis { stroke: var(--third); }
.line { fill: none; stroke-width: 1.75; } .line.third { stroke-dasharray: 6 4; }
.first { stroke: var(--first); } .second { stroke: var(--second); } .third { stroke: var(--third); }
.dot.first { fill: var(--first); } .dot.second { fill: var(--second); }"""


def sweep_table(rows: Sequence[Row], best: Row) -> str:
    """The rows as a Markdown table, a column for each figure, the best row in bold.

    A figure with a standard error has it; figures of fewer digits than four hide what a sweep is for.
    """
    names = next((list(row.figures) for row in rows if row.figures), [])
    lines = [f"| setting | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for row in rows:
        text = f"**{row.setting}**" if row is best else str(row.setting)
        if not row.figures:
            lines.append(f"| {text} | failed: {row.failed} |" + " |" * (len(names) - 1))
            continue
        cells = []
        for name in names:
            figure = row.figures[name]
            error = "" if figure.standard_error is None else f" ± {figure.standard_error:.2g}"
            cells.append(f"{figure.value:.4g}{error}")
        lines.append(f"| {text} | {' | '.join(cells)} |")
    figures = best.figures
    floors = " | ".join(f"{figures[name].floor:.4g}" for name in names)
    first = figures[names[0]]
    lines.append(f"| held-out images ({first.floor_samples}) | {floors} |")
    if first.floor_samples < first.samples:
        same = " | ".join(f"{figures[name].value_at_floor_samples:.4g}" for name in names)
        lines.append(f"| best, as many samples ({first.floor_samples}) | {same} |")
    return "\n".join(lines) + "\n"


def sweep_chart(rows: Sequence[Row], name: str, kind: Kind) -> str:
    """One figure over the scale of the guidance, a panel for each rule, temperature and denoising: an SVG document.

    Settings without guidance are the point at scale 0 of every panel with the same denoising. What held-out images
    score is drawn where there are as many of them as samples.

    Raises ValueError where no row has the figure.
    """
    panels = sweep_panels(rows, name, kind, "panel")
    drawn = []
    for number, (heading, chart) in enumerate(panels):
        place = f"translate({number % COLUMNS * WIDTH} {number // COLUMNS * (HEIGHT + HEADING)})"
        parts = [
            element("text", heading, x=12, y=22, class_="heading"),
            element("g", chart, transform=f"translate(0 {HEADING})"),
        ]
        drawn.append(element("g", *parts, transform=place))
    width, height = min(COLUMNS, len(panels)) * WIDTH, -(-len(panels) // COLUMNS) * (HEIGHT + HEADING)
    light, dark = (" ".join(f"--{k}: {v};" for k, v in THEMES[theme].items()) for theme in ("light", "dark"))
    sheet = f"svg {{ {light} }}\n@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}\n{_SHEET}"
    document = element(
        "svg",
        element("style", Markup(sheet)),
        element("rect", width=width, height=height, class_="ground"),
        join(drawn),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
    )
    return f"{document}\n"


def sweep_panels(rows: Sequence[Row], name: str, kind: Kind, prefix: str) -> list[tuple[str, Markup]]:
    """The panels of `sweep_chart`: what each shows, and its chart, whose ids begin with `prefix`.

    Raises ValueError where no row has the figure.
    """
    measured = [row for row in rows if name in row.figures]
    if not measured:
        raise ValueError(f"{name}: no row of the sweep has this figure")
    panels: dict[tuple[str, float, float | None], None] = {}
    for row in measured:
        setting = row.setting
        guided = any(r.setting.scale and r.setting.denoise == setting.denoise for r in measured)
        if setting.scale or not guided:
            panels[setting.rule, setting.temperature, setting.denoise] = None
    return [_panel(measured, name, kind, key, f"{prefix}{number}") for number, key in enumerate(panels)]


def _panel(
    rows: Sequence[Row], name: str, kind: Kind, key: tuple[str, float, float | None], chart_id: str
) -> tuple[str, Markup]:
    rule, temperature, denoise = key
    series: list[Series] = []
    for schedule, style in STYLES.items():
        points = []
        for row in rows:
            s: Setting = row.setting
            here = (s.rule, s.temperature, s.schedule) == (rule, temperature, schedule) or s.scale == 0
            if here and s.denoise == denoise:
                points.append((s.scale, row.figures[name].value))
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
    better = "lower is better" if kind in LOWER_IS_BETTER else "higher is better"
    label = f"{name} ({better}, N = {figure.samples})"
    chart = line_chart(chart_id, series, title=f"{name}: {heading}", x_label="scale of the guidance", y_label=label)
    return heading, chart
