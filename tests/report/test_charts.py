"""Charts are XML, and every point is inside the box where it belongs."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarflow.report.charts import BOTTOM, HEIGHT, LEFT, POINTS, RIGHT, TOP, WIDTH, Series, line_chart, thinned, ticks


def chart(*series: Series) -> ET.Element:
    return ET.fromstring(line_chart("c", series, title="T < 1", x_label="step", y_label="bits"))


def drawn(svg: ET.Element) -> list[list[tuple[float, float]]]:
    lines = [e.attrib["points"] for e in svg.iter("polyline")]
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in lines]  # type: ignore[misc]


def test_points_are_mapped_linearly_by_the_axes() -> None:
    svg = chart(Series("a", [(0, 0), (50, 4), (100, 10)], "first"))
    (points,) = drawn(svg)
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    want = [(left, bottom), ((left + right) / 2, bottom + 0.4 * (top - bottom)), (right, top)]
    for got, expected in zip(points, want, strict=True):
        assert got == pytest.approx(expected, abs=0.06)
    texts = [e.text for e in svg.iter("text")]
    assert {"0", "100", "10", "step", "bits", "a"} <= set(texts)


values = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=20))
def test_every_point_is_inside_the_box(points: list[tuple[float, float]]) -> None:
    (line,) = drawn(chart(Series("a", points, "first")))
    for x, y in line:
        assert LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1
        assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1


def test_what_is_not_finite_is_left_out_and_nothing_left_is_an_error() -> None:
    svg = chart(Series("a", [(0, 1), (1, math.nan), (2, math.inf), (3, 2)], "first"), Series("b", [], "second"))
    (points,) = drawn(svg)
    assert len(points) == 2
    assert "b" not in [e.text for e in svg.iter("text")]
    with pytest.raises(ValueError, match="no finite point"):
        chart(Series("a", [(0, math.nan)], "first"))


def test_a_chart_says_in_words_what_it_shows() -> None:
    svg = chart(Series("held out", [(0, 3.5), (9, 2.25), (10, 2.5)], "second", dots=True))
    assert svg.find("title").text == "T < 1"
    assert "held out: from 3.5 at step 0 to 2.5 at 10, lowest 2.25." in svg.find("desc").text
    assert svg.attrib["role"] == "img" and svg.attrib["aria-labelledby"] == "c-title c-desc"
    assert len([e for e in svg.iter("circle") if e.attrib["cy"] != "30"]) == 3  # one is in the legend


def test_long_series_are_thinned_to_means() -> None:
    points = [(float(k), float(k % 2)) for k in range(10 * POINTS)]
    got = thinned(points)
    assert len(got) == POINTS and all(y == 0.5 for _, y in got)
    assert thinned(points[:5]) == points[:5]


@given(values, values)
def test_ticks_enclose_the_data_and_are_few(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    got = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert got[0] <= low + slack and got[-1] >= high - slack
    assert 2 <= len(got) <= 8 and got == sorted(got)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 15, 16, 17, 100])
def test_a_long_series_is_drawn_with_no_more_points_than_that_and_all_of_them_count(count: int) -> None:
    points = [(float(k), float(k * k % 13)) for k in range(count)]
    found = thinned(points, most=8)
    assert len(found) <= 8 and (count > 8 or found == points)
    size = -(-count // 8) if count else 1
    assert found == [
        (sum(x for x, _ in group) / len(group), pytest.approx(sum(y for _, y in group) / len(group)))
        for group in (points[k : k + size] for k in range(0, count, size))
    ]


def test_a_chart_says_how_many_points_it_leaves_out() -> None:
    whole = Series("a", [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)], "first")
    broken = Series("b", [(0.0, math.nan), (1.0, -math.inf), (2.0, 3.0)], "second")
    text = "2 of 6 points are no finite numbers, and left out"
    assert text in str(line_chart("c", [whole, broken], title="t", x_label="step", y_label="loss"))
    assert "left out" not in str(line_chart("c", [whole], title="t", x_label="step", y_label="loss"))
