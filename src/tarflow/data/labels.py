"""Labels, by the names of their classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tarflow.data.errors import DataError
from tarflow.data.records import Records, Source

MOST_CLASSES = 1 << 20  # a label beyond that is no class, but something else, or damaged


def label_tensors(
    where: str,
    source: Source,
    parts: Sequence[Records],
    kept: Sequence[Sequence[int]],
    class_names: tuple[str, ...] | None,
) -> tuple[list[Tensor | None], tuple[str, ...]]:
    """The labels (N,) int64 of each list of `kept` records, and the names of the classes; None and () without.

    A record is counted through all `parts`. With `class_names` labels are indices into those, by name; where the source
    has no names, a label is its own name. Raises `DataError` that begins with `where`: labels in some parts only,
    labels without a class, unknown classes.
    """
    labelled = [part for part in parts if part.labels is not None]
    if not labelled:
        return [None] * len(kept), ()
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
    names = source.class_names or tuple(str(i) for i in range(top + 1))
    every = np.concatenate([np.asarray(part.labels, np.int64) for part in parts])
    labels = [torch.from_numpy(every[np.asarray(rows, np.int64)]) for rows in kept]
    used = torch.cat(labels).unique()
    if len(used) and int(used[-1]) >= len(names):
        raise DataError(f"{where}: label {int(used[-1])}: expected 0 to {len(names) - 1}, for {len(names)} classes")
    if class_names is None or class_names == names:
        return list(labels), names
    if len(set(class_names)) < len(class_names):
        raise DataError(f"class_names: expected each name once, to map labels by name, got {_few(class_names)}")
    find = class_finder(class_names)
    found = [find(name) for name in names]
    for label in used[used >= 0].tolist():
        if found[label] is None:
            raise DataError(f"{where}: unknown class {names[label]!r}: expected one of {_few(class_names)}")
    mapping = torch.tensor([-1 if k is None else k for k in found], device="cpu", dtype=torch.int64)
    return [mapping[some] for some in labels], class_names


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
