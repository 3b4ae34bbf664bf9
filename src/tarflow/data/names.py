"""What names mean: which split they speak of (`train`, `mnist-test`, `Validation_64x64`, `train2017`), and which class.

A name of a folder or a file is cut into words. One of them may be that of a split; what is left of the name is its
*template*, in which `mnist_train` and `mnist_test` agree, and `test-tubes` and `train-sets` do not.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tarflow.data.records import Split

_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "vld", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
_GLUED = re.compile(r"(set|split|data|images?|imgs?|samples?)$")  # as in `trainset`
_HELD_OUT = re.compile(r"(held|hold)[-_ ]?out", re.IGNORECASE)


class Named(NamedTuple):
    """A name that speaks of a split, and the rest of it."""

    name: str
    split: Split
    template: str


def named_split(name: str) -> Named | None:
    """The split that a name speaks of; None where it speaks of none, or of several.

    >>> named_split("Valid").split, named_split("train_64x64").template, named_split("trainA").template
    ('validation', '*_#x#', '*a')
    >>> named_split("cats"), named_split("train-test")
    (None, None)
    """
    pieces = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+|[\W_]", _HELD_OUT.sub("holdout", name))
    words = [piece.lower() for piece in pieces]
    found = {k: split for k, word in enumerate(words) if (split := _WORDS.get(_GLUED.sub("", word) or word))}
    if len(set(found.values())) != 1:
        return None
    first = min(found)
    template = "".join("*" if k == first else "#" if word.isdigit() else word for k, word in enumerate(words))
    return Named(name, found[first], template)


def split_of(name: str) -> Split | None:
    """The split of `named_split`.

    >>> split_of("mnist-train"), split_of("DEV"), split_of("cats")
    ('train', 'validation', None)
    """
    found = named_split(name)
    return found.split if found else None


def composed(name: str) -> str:
    """A name in the one spelling of its accents (NFC) in which it is kept: macOS writes `é` as `e` and an accent (NFD).

    >>> composed("cafe\u0301") == "caf\u00e9"
    True
    """
    return unicodedata.normalize("NFC", name)


def class_finder(class_names: Sequence[str]) -> Callable[[str], int | None]:
    """Tells which class has a name, letter by letter or else in the other spelling of its accents; None: none has."""
    numbers = dict(zip(map(composed, reversed(class_names)), reversed(range(len(class_names))), strict=True))
    exact = {name: number for number, name in enumerate(class_names)}
    return lambda name: exact.get(name, numbers.get(composed(name)))


def few(names: Sequence[str], most: int = 20) -> str:
    """The first of some names, and how many there are where that is not all.

    >>> few(["cat", "dog", "eel"]), few(["cat", "dog", "eel"], 2)
    ('cat, dog, eel', 'cat, dog, ... (3 in all)')
    """
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
