"""What somebody at the page asks for, checked: a wish is a value, and what no model can do is one line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from tarflow.fields import integer, real

ALL, NULL = "all", "null"  # every class in turn, and no class
MOST_IMAGES = 64  # drawn at a time
MOST_SEED = 2**32 - 1
MOST_GUIDANCE = 20.0
MOST_TEMPERATURE = 10.0
MOST_STEPS = 33  # images on a walk
MOST_VARIATIONS = 16
MOST_SECONDS = 120  # that drawing a region anew may take
RULES = ("paper", "stable")


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number in a range, also as the whole float that a browser sends. ValueError that names it."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    try:
        number = integer(name, value)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, got {quoted(value)}")
    return number


def number(name: str, value: Any, least: float, most: float) -> float:
    """A number in a range. ValueError that names it."""
    expected = f"a number from {least:g} to {most:g}"
    try:
        return real(name, value, expected, lambda v: least <= v <= most)
    except ValueError:
        raise ValueError(f"{name}: expected {expected}, got {quoted(value)}") from None


def flag(name: str, value: Any) -> bool:
    """A yes or no. ValueError that names it."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {quoted(value)}")
    return value


def label(name: str, value: Any, classes: int, *, all_of_them: bool = False) -> int | None:
    """A class by its number as text: -1 for none, and None where there are no classes, or all are meant."""
    if not classes:
        if value not in (None, ""):
            raise ValueError(f"{name}: this model has no classes, got {quoted(value)}")
        return None
    if value == ALL and all_of_them:
        return None
    if value in (NULL, None):
        return -1
    digits = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10
    if not digits or int(value) >= classes:
        raise ValueError(f"{name}: expected a class from 0 to {classes - 1}, or {NULL}, got {quoted(value)}")
    return int(value)


def chosen(name: str, value: Any, known: tuple[str, ...]) -> str:
    """One of several words. ValueError that names it."""
    if value not in known:
        raise ValueError(f"{name}: expected {' or '.join(known)}, got {quoted(value)}")
    return str(value)


def cells(name: str, value: Any, count: int) -> list[int]:
    """Numbers of cells that are chosen, one at least, as a JSON list. ValueError that names it."""
    try:
        found = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        found = None
    good = isinstance(found, list) and all(type(k) is int and 0 <= k < count for k in found)
    if not isinstance(found, list) or not good:
        raise ValueError(f"{name}: expected a JSON list of numbers from 0 to {count - 1}, got {quoted(value)}")
    if not found:
        raise ValueError(f"{name}: nothing is chosen; choose what is to be drawn anew")
    return found


def quoted(value: Any) -> str:
    """A value that was sent, as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


@dataclass(frozen=True)
class Drawing:
    """How images are drawn.

    Attributes:
        images: how many. seed: of the noise; image k is the same however many are drawn.
        label: a class, -1 for none, None for all in turn, or where there are no classes; of other conditions the value
            of one row, None for null.
        guidance: its scale w, 0 for none. rule: "paper" or "stable". temperature: τ of the unguided branch.
        denoised: whether the noise of the training is taken away.
    """

    images: int
    seed: int
    label: Any
    guidance: float
    rule: str
    temperature: float
    denoised: bool


def drawing(values: dict[str, Any], classes: int) -> Drawing:
    """A `Drawing` of what the controls say; those that a model has no use for are not among `values`."""
    return Drawing(
        whole("images", values["images"], 1, MOST_IMAGES),
        whole("seed", values["seed"], 0, MOST_SEED),
        label("class", values.get("class"), classes, all_of_them=True),
        number("guidance", values.get("guidance", 0), 0, MOST_GUIDANCE),
        chosen("rule", values.get("rule", "paper"), RULES),
        number("temperature", values.get("temperature", 1), 0.05, MOST_TEMPERATURE),
        flag("denoise", values.get("denoise", False)),
    )
