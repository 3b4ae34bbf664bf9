"""Labels, by the names of their classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tarflow.data.errors import DataError
from tarflow.data.records import Part, Source

MOST_CLASSES = 1 << 20  # a label beyond that is no class, but something else, or damaged


def label_tensors(
    where: str,
    source: Source,
    parts: Sequence[Part],
    kept: Sequence[Sequence[int]],
    class_names: tuple[str, ...] | None,
) -> tuple[list[Tensor | None], tuple[str, ...]]:
    """The labels (N,) int64 of the `kept` records of each part, and the names of the classes; None and () without.

    With `class_names` labels are indices into those, by name; where the source has no names, a label is its own name.
    Raises `DataError` that begins with `where`: labels in some parts only, labels without a class, unknown classes.
    """
    labelled = [part for part in parts if part.labels is not None]
    if not labelled:
        return [None] * len(parts), ()
    if len(labelled) < len(parts):
        without = next(part for part in parts if part.labels is None)
        raise DataError(
            f"{where}: the {labelled[0].split} split has labels and the {without.split} split has none: "
            "expected both to be alike (give the path of one of them to use it alone)"
        )
    # Of all parts, also those not asked for, so that the classes do not depend on the split.
    top = max(max(part.labels or [-1]) for part in source.parts)
    if top >= MOST_CLASSES:
        raise DataError(f"{where}: label {top}: expected the number of a class, counted from 0, below {MOST_CLASSES}")
    labels = [
        torch.tensor([(part.labels or ())[place] for place in chosen], device="cpu", dtype=torch.int64)
        for part, chosen in zip(parts, kept, strict=True)
    ]
    every = torch.cat(labels)
    names = source.class_names or tuple(str(i) for i in range(top + 1))
    if int(every.max()) >= len(names):
        raise DataError(f"{where}: label {int(every.max())}: expected 0 to {len(names) - 1}, for {len(names)} classes")
    if class_names is None or class_names == names:
        return list(labels), names
    mapping = _mapping(where, names, {label for label in every.tolist() if label >= 0}, class_names)
    return [mapping[part] for part in labels], class_names


def _mapping(where: str, names: Sequence[str], used: set[int], class_names: tuple[str, ...]) -> Tensor:
    """The index in `class_names` of each of `names`; of those that no image has it does not matter."""
    if len(set(class_names)) < len(class_names):
        raise DataError(f"class_names: expected each name once, to map labels by name, got {_few(class_names)}")
    find = class_finder(class_names)
    found = [find(name) for name in names]
    for label in sorted(used):
        if found[label] is None:
            raise DataError(f"{where}: unknown class {names[label]!r}: expected one of {_few(class_names)}")
    return torch.tensor([-1 if number is None else number for number in found], device="cpu", dtype=torch.int64)


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


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
