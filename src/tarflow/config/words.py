"""What is typed in one word: names with commas between them, and what each of some names is given."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

NULL = "null"
"""What is typed for no condition."""


def names_in(words: str) -> tuple[str, ...]:
    """The names in words with commas between them.

    >>> names_in("angle, brightness")
    ('angle', 'brightness')
    """
    return tuple(word.strip() for word in words.split(",") if word.strip())


def values_in(words: str, names: Sequence[str]) -> list[str] | None:
    """What words say of each of some names, in their order: `name=value` in any order, or the values alone in theirs.

    Between them are commas, semicolons or spaces; a value may hold any of these where names are said, and brackets
    around all of it mean nothing. None of `null`, and of nothing. Raises ValueError that says what was expected.

    >>> values_in("kind = red dwarf, age=4.5", ("age", "kind"))
    ['4.5', 'red dwarf']
    >>> values_in("[30 0.5]", ("angle", "brightness"))
    ['30', '0.5']
    >>> values_in("age=4.5", ("age", "kind"))
    Traceback (most recent call last):
    ValueError: kind is missing: expected age=…, kind=…, each once, or the values alone in this order
    """
    text = words.strip().removeprefix("[").removesuffix("]").strip()
    if text in ("", NULL):
        return None
    longest_first = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    before, *rest = re.split(rf"(?:^|(?<=[\s,;]))({longest_first})\s*=", text)
    if not rest and "=" not in text:
        rest = [part.strip() for part in re.split("[,;]" if re.search("[,;]", text) else r"\s+", text)]
        if len(rest) == len(names):
            return rest
        problem = f"{len(rest)} values"
    else:
        said, values = rest[::2], [value.strip(" \t\n,;") for value in rest[1::2]]
        missing, twice = ([name for name in names if said.count(name) == n] for n in (0, 2))
        if not (before.strip() or missing or len(said) > len(names)):
            return [values[said.index(name)] for name in names]
        problem = f"{missing[0]} is missing" if missing and not before.strip() else f"got {words!r}"
        problem = f"{twice[0]} is said twice" if twice else problem
    raise ValueError(f"{problem}: expected {'=…, '.join(names)}=…, each once, or the values alone in this order")


def finite_number(name: str, word: str) -> float:
    """The number that a word says `name` is. Raises ValueError where it is none, or not finite."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        shown = word if len(word) <= 40 else f"{word[:40]}…"
        raise ValueError(f"{name}: expected a finite number, got {shown!r}")
    return value
