"""Line charts as SVG: axes, ticks, labels and a legend, in colours that the page's style sheet decides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tarflow.report.markup import Markup, element

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
    parts = [
        element("title", title, id=f"{name}-title"),
        element("desc", describe(drawn, x_label, y_label), id=f"{name}-desc"),
        *_axes(x_scale, y_scale, x_ticks, y_ticks, x_label, y_label),
        *_legend(drawn),
    ]
    for s in drawn:
        places = [(x_scale(x), y_scale(y)) for x, y in s.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(element("polyline", points=path, class_=f"line {s.style}"))
        if s.dots:
            parts += [
                element("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="3", class_=f"dot {s.style}") for x, y in places
            ]
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="chart",
        width=WIDTH,
        height=HEIGHT,
    )


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
    """In words what the curves do, for whoever does not see them."""
    sentences = []
    for s in series:
        (x0, y0), (x1, y1) = s.points[0], s.points[-1]
        lowest = min(y for _, y in s.points)
        sentences.append(f"{s.name}: from {y0:.4g} at {x_label} {x0:g} to {y1:.4g} at {x1:g}, lowest {lowest:.4g}.")
    return f"{y_label} over {x_label}. " + " ".join(sentences)


def _axes(
    x_scale: Scale, y_scale: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str
) -> list[Markup]:
    left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value in y_ticks:
        y = f"{y_scale(value):.1f}"
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="gridline"))
        parts.append(element("text", label(value), x=left - 8, y=y, dy="0.35em", text_anchor="end"))
    for value in x_ticks:
        x = f"{x_scale(value):.1f}"
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 5, class_="axis"))
        parts.append(element("text", label(value), x=x, y=bottom + 20, text_anchor="middle"))
    parts.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    parts.append(element("text", x_label, x=(left + right) / 2, y=HEIGHT - 8, text_anchor="middle", class_="name"))
    parts.append(element("text", y_label, x=12, y=18, class_="name"))
    return parts


def _legend(series: Sequence[Series]) -> list[Markup]:
    """Names at the right end, with a piece of the line of each."""
    parts, x = [], float(WIDTH - RIGHT)
    for s in reversed(series):
        parts.append(element("text", s.name, x=x, y=34, text_anchor="end"))
        x -= 7.2 * len(s.name) + 6  # about as wide as the text is
        parts.append(element("line", x1=x - 20, x2=x, y1="30", y2="30", class_=f"line {s.style}"))
        if s.dots:
            parts.append(element("circle", cx=x - 10, cy="30", r="3", class_=f"dot {s.style}"))
        x -= 34
    return parts


def label(value: float) -> str:
    """A number of an axis, without the noise of its binary digits: thousands as "2k"."""
    value = round(value, 10)
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
