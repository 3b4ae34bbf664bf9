"""Line charts as SVG: axes, ticks, labels and a legend, in colours that the page's style sheet decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tarflow.report.parts import TEMPLATES

# A phone shows 440 units on some 360 pixels, which leaves letters of 13 units readable.
WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 54, 24, 44, 46  # room around the box for labels, half of the last one on the right
POINTS = 300  # drawn of a series at most: more than a screen has pixels for says nothing

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """A named curve. `style` is its class in the style sheet: "first", "second" or "third"; `dots` marks its points."""

    name: str
    points: Points
    style: str
    dots: bool = False


@dataclass(frozen=True)
class Scale:
    """A straight map of data from `low` … `high` to pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def place(self, value: float) -> str:
        """Where a value is drawn, to a tenth of a pixel."""
        return f"{self(value):.1f}"


def line_chart(name: str, series: Sequence[Series], *, title: str, x_label: str, y_label: str) -> Markup:
    """A chart of all finite points of `series`, which says how many others there are. `name` makes its ids unique.

    Raises:
        ValueError: no finite point at all.
    """
    drawn = [Series(s.name, thinned(finite(s.points)), s.style, s.dots) for s in series]
    drawn = [s for s in drawn if s.points]
    if not drawn:
        raise ValueError(f"{title}: no finite point to draw")
    left_out = sum(len(s.points) - len(finite(s.points)) for s in series)
    if left_out:
        x_label += f" ({left_out} of {sum(len(s.points) for s in series)} points are no finite numbers, and left out)"
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for _, y in s.points]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_scale = Scale(min(x_ticks[0], min(xs)), max(x_ticks[-1], max(xs)), LEFT, WIDTH - RIGHT)
    y_scale = Scale(min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys)), HEIGHT - BOTTOM, TOP)
    chart = TEMPLATES.get_template("chart.svg").render(
        name=name,
        title=title,
        description=describe(drawn, x_label, y_label),
        series=drawn,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x=x_scale.place,
        y=y_scale.place,
        label=label,
        x_label=x_label,
        y_label=y_label,
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM},
    )
    return Markup(chart)


def document(panels: Sequence[tuple[str, Markup]], columns: int = 2) -> str:
    """Charts with a heading each, `columns` side by side, as an SVG document that stands alone."""
    template = TEMPLATES.get_template("panels.svg")
    return template.render(panels=panels, columns=columns, width=WIDTH, height=HEIGHT) + "\n"


def finite(points: Points) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def thinned(points: Points, most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means of as many neighbours as it takes."""
    size = math.ceil(len(points) / most) if points else 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`.

    >>> ticks(0.2, 9.0)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high - low < 1e-9 * max(abs(low), abs(high), 1):  # a single value has a place in the middle
        half = max(abs(low), 1) / 2
        low, high = low - half, high + half
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20, 50):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return [k * step for k in range(first, last + 1)]


def describe(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """In words what the curves do, for readers who do not see them."""
    sentences = []
    for s in series:
        (x0, y0), (x1, y1) = s.points[0], s.points[-1]
        lowest = min(y for _, y in s.points)
        sentences.append(f"{s.name}: from {y0:.4g} at {x_label} {x0:g} to {y1:.4g} at {x1:g}, lowest {lowest:.4g}.")
    return f"{y_label} over {x_label}. " + " ".join(sentences)


def label(value: float) -> str:
    """A number of an axis, without the noise of its binary digits: thousands as "2k"."""
    value = round(value, 10)
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
