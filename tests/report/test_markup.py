"""Whatever is not markup is escaped."""

from __future__ import annotations

import pytest

from tarflow.report.markup import Markup, element, join, table


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    got = element("p", "<script>", element("b", "x & y"), title='"><img src=x>', class_=None)
    assert got == '<p title="&quot;&gt;&lt;img src=x&gt;">&lt;script&gt;<b>x &amp; y</b></p>'
    assert isinstance(got, Markup)


def test_an_element_may_have_an_attribute_called_name() -> None:
    assert element("meta", name="viewport", content="x") == '<meta name="viewport" content="x">'


def test_void_elements_have_no_contents() -> None:
    with pytest.raises(AssertionError, match="no contents"):
        element("img", "text")


def test_join_escapes_each_part() -> None:
    assert join(["<", Markup("<br>")], " ") == "&lt; <br>"


def test_a_table_names_its_rows_and_columns() -> None:
    got = table(["a", "b"], [["<x>", "1"]], "what it is")
    assert got.count('scope="col"') == 2 and '<th scope="row">&lt;x&gt;</th><td>1</td>' in got
    assert "<caption>what it is</caption>" in got
