"""Which split a name speaks of: `train`, `mnist-test`, `Validation_64x64`, `train2017`; and when a folder is a class.

A name of a folder or a file is cut into words. One of them may be that of a split; what is left of the name is its
*template*. Folders are splits where their templates agree, as in `mnist_train` and `mnist_test`; `test-tubes` and
`train-sets` are two classes, and where it could be either that is an error.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tarflow.data.errors import DataError
from tarflow.data.records import Split

_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "vld", "dev", "devel", "development"), "validation"),
    **dict.fromkeys(("eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}
_GLUED = re.compile(r"(set|split|data|images?|imgs?|samples?)$")  # as in `trainset`
_HELD_OUT = re.compile(r"(held|hold)[-_ ]?out", re.IGNORECASE)


@dataclass(frozen=True)
class Named:
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


def split_folders(where: str, names: Collection[str]) -> list[Named]:
    """Which of the folders `names`, all of them that hold images, are splits; none where they are classes.

    Raises `DataError` that begins with `where`: folders beside those of a training and a held-out split; two for one
    split; names of which nobody knows whether they are splits or classes.
    """
    found = [named for name in sorted(names) if (named := named_split(name))]
    sets: dict[str, list[Named]] = {}
    for named in found:
        sets.setdefault(named.template, []).append(named)
    several = [group for group in sets.values() if len({named.split for named in group}) > 1]
    if len(found) < len(names):  # a class may be called train
        several = [group for group in several if any(named.split == "train" for named in group)]
        if not several:
            return []
    if several:
        splits = [named for group in several for named in group]
        few = ", ".join(named.name for named in splits)
        if beside := sorted(set(names) - {named.name for named in splits}):
            raise DataError(f"{where}: images in {beside[0]}/ beside the split folders {few}: expected them in those")
    elif len({named.split for named in found}) > 1:
        a, b = found[0], next(named for named in found if named.split != found[0].split)
        raise DataError(
            f"{where}: {a.name}/ and {b.name}/ may be splits or classes: expected names that differ in nothing else, "
            "as train/ and test/, or that speak of no split"
        )
    else:
        splits = found if len(sets) == 1 else []  # test-strips, test-tubes
    for one, other in itertools.combinations(splits, 2):
        if one.split == other.split:
            both = f"{one.name}/ and {other.name}/"
            raise DataError(f"{where}: {both} are both the {one.split} split: expected one of them")
    return splits


def splits_inside(names: Sequence[str]) -> tuple[str, str] | None:
    """A training folder and one held out among the folders `names`, which are inside a class; None without both."""
    found = list(filter(None, map(named_split, names)))
    for named, other in itertools.product(found, found):
        if named.split == "train" and other.split != "train" and named.template == other.template:
            return named.name, other.name
    return None
