"""What somebody asks for is checked, and what cannot be is one line that names it."""

from __future__ import annotations

from typing import Any

import pytest

from tarflow.play.wishes import ALL, NULL, Drawing, drawing, label

GOOD: dict[str, Any] = {
    **{"images": 4, "seed": 7, "class": "3", "guidance": 1.5, "rule": "stable", "temperature": 0.5, "denoise": True}
}


def test_a_wish_is_what_the_controls_say() -> None:
    assert drawing(GOOD, 10) == Drawing(4, 7, 3, 1.5, "stable", 0.5, True)
    assert drawing(GOOD | {"images": 4.0}, 10).images == 4  # as a browser sends it
    assert drawing(GOOD | {"class": ALL}, 10).label is None and drawing(GOOD | {"class": NULL}, 10).label == -1


def test_what_a_model_has_no_use_for_need_not_be_said() -> None:
    assert drawing({"images": 1, "seed": 0}, 0) == Drawing(1, 0, None, 0.0, "paper", 1.0, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("images", v) for v in (0, 65, -1, 1.5, True, None, "4", float("nan"), float("inf"), 10**30)],
        *[("seed", v) for v in (-1, 2**32, "0", None, 0.5)],
        *[("class", v) for v in ("10", "-1", "x", "３", 3, True, "", "0" * 11, ["3"])],
        *[("guidance", v) for v in (-0.1, 21, "1", None, float("nan"), True)],
        *[("rule", v) for v in ("Paper", None, 1, "")],
        *[("temperature", v) for v in (0, 11, -1, None)],
        *[("denoise", v) for v in (1, None, "true")],
    ],
)
def test_what_cannot_be_is_one_line_that_names_it(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected ") as caught:
        drawing(GOOD | {name: value}, 10)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160


def test_a_class_of_a_model_without_classes_is_an_error() -> None:
    assert label("class", None, 0) is None
    with pytest.raises(ValueError, match="class: this model has no classes, got '3'"):
        label("class", "3", 0)
