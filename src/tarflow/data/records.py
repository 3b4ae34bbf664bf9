"""What a source of images offers, whatever its format: parts, each a row of named records not yet decoded."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias, overload

import numpy as np

from tarflow.data.errors import DataError
from tarflow.data.value_range import ValueRange

Split: TypeAlias = Literal["train", "validation", "test", "all"]

# A file, an encoded image, pixels (C, H, W) uint8 with C 1 or 3, or why the reader found the record bad.
Content: TypeAlias = "Path | bytes | np.ndarray[Any, np.dtype[np.uint8]] | DataError"


class Remote(Protocol):
    """A file that is not on this machine. `str` of it is its address."""

    @property
    def name(self) -> str: ...

    def open(self) -> IO[bytes]:
        """The file, for reading at any place."""

    def identity(self) -> str:
        """What changes when the file does, such as its size and the digest that its keeper has of it."""


Location: TypeAlias = "Path | Remote"


class RowNames(Sequence[str]):
    """The names of the rows of some files, `file:row` with rows from 0, made when they are asked for.

    >>> list(RowNames([("a.npz", 1), ("b.npz", 2)]))
    ['a.npz:0', 'b.npz:0', 'b.npz:1']
    """

    def __init__(self, files: Sequence[tuple[str, int]]) -> None:
        self.files = [file for file in files if file[1]]
        self.ends = list(itertools.accumulate(rows for _, rows in self.files))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # counts negative ones from the end, and raises IndexError
        file = bisect.bisect_right(self.ends, index)
        name, rows = self.files[file]
        return f"{name}:{index - self.ends[file] + rows}"


@dataclass(frozen=True)
class Group:
    """Records that lie together, and that `read()` brings into memory together, in order and still encoded."""

    rows: int
    read: Callable[[], Sequence[Content]]


@dataclass(frozen=True)
class Part:
    """One split of a source. `contents()` goes through the records from the start, in the order of `names`.

    `groups`, where records can be had without those before them, are the same records in the same order. `choose`,
    where there is one, makes the part that some of the rows alone would be.
    """

    split: Split
    names: Sequence[str]
    labels: Sequence[int] | None
    contents: Callable[[], Iterator[Content]]
    groups: tuple[Group, ...] | None = None
    choose: Callable[[Sequence[int]], Part] | None = None

    def __post_init__(self) -> None:
        assert self.labels is None or len(self.labels) == len(self.names)
        assert self.groups is None or sum(group.rows for group in self.groups) == len(self.names)

    def chosen(self, rows: Sequence[int]) -> Part:
        """The records `rows`, sorted, as if there were no others; `choose` does it where the groups would differ."""
        if len(rows) == len(self.names):
            return self
        if self.choose is not None:
            return self.choose(rows)
        wanted = set(rows)

        def contents() -> Iterator[Content]:
            return (content for row, content in enumerate(self.contents()) if row in wanted)

        groups, first = [], 0
        for group in self.groups or ():
            inside = [row - first for row in range(first, first + group.rows) if row in wanted]
            if inside:
                groups.append(group if len(inside) == group.rows else Group(len(inside), _some(group, inside)))
            first += group.rows
        return Part(
            self.split,
            [self.names[row] for row in rows],
            None if self.labels is None else [self.labels[row] for row in rows],
            contents,
            None if self.groups is None else tuple(groups),
        )


def _some(group: Group, rows: Sequence[int]) -> Callable[[], Sequence[Content]]:
    def read() -> Sequence[Content]:
        contents = group.read()
        return [contents[row] for row in rows]

    return read


@dataclass(frozen=True)
class Source:
    """All splits of a source, training first. `class_names` None: a label is its own name.

    `files` are those that the records lie in; none where each record is a file of its own, or none is. `variant` names
    which of several versions of a data set this is, where its files tell. `value_range` is that of images of more than
    8 bits.
    """

    parts: tuple[Part, ...]
    class_names: tuple[str, ...] | None = None
    levels: int = 256
    files: tuple[Location, ...] = ()
    variant: str = ""
    value_range: ValueRange = "full"


SPLIT_ORDER: tuple[Split, ...] = ("train", "validation", "test", "all")
