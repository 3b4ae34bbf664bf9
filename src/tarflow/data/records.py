"""What a source of images offers, whatever its format: parts, each a row of named records not yet decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from tarflow.data.errors import DataError

Split: TypeAlias = Literal["train", "validation", "test", "all"]

# A file, an encoded image, pixels (C, H, W) uint8 with C 1 or 3, or why the reader found the record bad.
Content: TypeAlias = "Path | bytes | np.ndarray[Any, np.dtype[np.uint8]] | DataError"


@dataclass(frozen=True)
class Part:
    """One split of a source. `contents()` goes through the records from the start, in the order of `names`."""

    split: Split
    names: Sequence[str]
    labels: Sequence[int] | None
    contents: Callable[[], Iterator[Content]]

    def __post_init__(self) -> None:
        assert self.labels is None or len(self.labels) == len(self.names)


@dataclass(frozen=True)
class Source:
    """All splits of a source, training first. `class_names` None: a label is its own name."""

    parts: tuple[Part, ...]
    class_names: tuple[str, ...] | None = None
    levels: int = 256


def split_of(name: str) -> Split | None:
    """The split that a folder's or a file's name speaks of, in any case, or None.

    >>> split_of("Valid"), split_of("test"), split_of("cats")
    ('validation', 'test', None)
    """
    splits: dict[str, Split] = {"train": "train", "test": "test"}
    splits |= {"val": "validation", "valid": "validation", "validation": "validation"}
    return splits.get(name.lower())


SPLIT_ORDER: tuple[Split, ...] = ("train", "validation", "test", "all")
