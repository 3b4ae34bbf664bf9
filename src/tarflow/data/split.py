"""Which images are learned from and which are held out: the data's own split, or a seeded one."""

from __future__ import annotations

from torch import Tensor

from tarflow.data.batches import seeded_permutation
from tarflow.data.errors import DataError
from tarflow.data.records import Part, Source
from tarflow.fields import real


def own_split(source: Source) -> tuple[Part, Part] | None:
    """What to learn from and what is held out (validation, or else test) by the source itself; None without both."""
    by_split = {part.split: part for part in source.parts}
    held_out = by_split.get("validation") or by_split.get("test")
    return (by_split["train"], held_out) if "train" in by_split and held_out else None


def seeded_split(where: str, size: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices, int64, of the images to learn from and of those held out, at least one of each.

    Raises `DataError` that begins with `where` for fewer than two images.
    """
    if size < 2:
        raise DataError(f"{where}: expected at least 2 images, one to train on and one to hold out, got {size}")
    count = min(max(round(fraction * size), 1), size - 1)
    order = seeded_permutation(size, "held out", seed)
    return order[count:].sort().values, order[:count].sort().values


def check_fraction(fraction: float) -> None:
    """Raise `DataError` unless it is one that leaves something on both sides."""
    try:
        real("held_out_fraction", fraction, "a number between 0 and 1", lambda value: 0 < value < 1)
    except ValueError as error:
        raise DataError(str(error)) from None
