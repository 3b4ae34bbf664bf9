"""Whatever does not come from a template is escaped: names of classes, paths, words of other programs."""

from __future__ import annotations

from typing import Any

from tarflow.report.charts import Series, line_chart
from tarflow.report.parts import TEMPLATES, Table

HOSTILE = '"><script>x & y</script>'
ESCAPED = "&#34;&gt;&lt;script&gt;x &amp; y&lt;/script&gt;"


def test_a_table_names_its_rows_and_columns_and_escapes_them() -> None:
    module: Any = TEMPLATES.get_template("sections.html").module
    shown = str(module.table(Table(HOSTILE, ["a", HOSTILE], [[HOSTILE, HOSTILE]])))
    assert "<script>" not in shown and shown.count(ESCAPED) == 5
    assert shown.count('scope="col"') == 2 and f'<th scope="row">{ESCAPED}</th><td>{ESCAPED}</td>' in shown
    assert f"<caption>{ESCAPED}</caption>" in shown and f'aria-label="{ESCAPED}"' in shown


def test_words_of_a_chart_are_escaped_and_the_chart_is_markup() -> None:
    series = [Series(HOSTILE, [(0.0, 1.0), (1.0, 2.0)], "first")]
    chart = line_chart("c", series, title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE)
    assert "<script>" not in chart and chart.count(ESCAPED) == 8
    assert chart.__html__() == chart
