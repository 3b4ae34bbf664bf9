"""What a reader gives of a source, whatever its format: splits, each a row of named records that are not decoded."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np

from tarflow.config import ValueRange
from tarflow.data.errors import DataError

Split: TypeAlias = Literal["train", "validation", "test", "all"]
SPLIT_ORDER: tuple[Split, ...] = ("train", "validation", "test", "all")

# A file, an encoded image, pixels (C, H, W) uint8 with C 1 or 3, or why the reader found the record bad.
Content: TypeAlias = "Path | bytes | np.ndarray[Any, np.dtype[np.uint8]] | DataError"


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address that fsspec knows, such as `hf://datasets/…`."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def open(self) -> IO[bytes]:
        """The file, for reading at any place."""
        import fsspec

        file: IO[bytes] = fsspec.open(self.url, "rb").open()
        return file

    def identity(self) -> str:
        """Its size, and the digest that the hub has of it."""
        from fsspec.core import url_to_fs

        system, path = url_to_fs(self.url)
        info = system.info(path)
        return repr((info.get("size"), info.get("blob_id"), (info.get("lfs") or {}).get("sha256")))


Location: TypeAlias = Path | RemoteFile


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

    def __getitem__(self, index: Any) -> Any:
        index = range(len(self))[index]  # counts negative ones from the end, and raises IndexError
        file = bisect.bisect_right(self.ends, index)
        name, rows = self.files[file]
        return f"{name}:{index - self.ends[file] + rows}"


@dataclass(frozen=True)
class Records:
    """One split of a source; cheap to hold.

    Attributes:
        names, labels: one a record; without labels None.
        read: the contents of these rows, which are in rising order; what lies between is not read where that can be.
    """

    split: Split
    names: Sequence[str]
    labels: Sequence[int] | None
    read: Callable[[Sequence[int]], Iterator[Content]]

    def __post_init__(self) -> None:
        assert self.labels is None or len(self.labels) == len(self.names)

    @classmethod
    def in_files(cls, split: Split, files: Sequence[tuple[str, int]], labels: Any, read: Any) -> Records:
        """Those that are rows of files, of each of which its name is given and how many it has."""
        return cls(split, RowNames(files), labels, read)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Content]:
        return self.read(range(len(self)))


def records_in_arrays(split: Split, files: Sequence[tuple[str, int, Callable[[], Any]]], labels: Any) -> Records:
    """Those that lie in files one after the other, each with its name, how many it has, and what gives all of its
    images, (N, C, H, W), when some of them are asked for."""

    def reader(images: Callable[[], Any]) -> Callable[[Any], Iterator[Content]]:
        return lambda rows: map(images().__getitem__, rows)

    readers = [(count, reader(images)) for _, count, images in files]
    return Records.in_files(split, [file[:2] for file in files], labels, lambda rows: read_rows(readers, rows))


def read_rows(files: Sequence[tuple[int, Callable[[Any], Iterator[Content]]]], rows: Any) -> Iterator[Content]:
    """The sorted `rows`, counted through files one after the other, of each of which is said how many it has."""
    every, start = np.asarray(rows, np.int64), 0
    for count, read in files:
        if len(inside := rows_within(every, start, count)):
            yield from read(inside)
        start += count


def rows_within(rows: Any, start: int, count: int) -> Any:
    """Those of the sorted rows, an array, that are among the `count` from `start`, counted from there."""
    return rows[slice(*np.searchsorted(rows, (start, start + count)))] - start


@dataclass(frozen=True)
class Source:
    """All splits of a source, training first.

    Attributes:
        class_names: None: a label is its own name.
        levels: that a pixel can take.
        files: those that the records lie in; none where each record is a file of its own, or none is.
        variant: which of several versions of a data set it is, where its files tell.
        value_range: that of images of more than 8 bits.
        store: the one that it is, whose images are there as they are to be.
    """

    parts: tuple[Records, ...]
    class_names: tuple[str, ...] | None = None
    levels: int = 256
    files: tuple[Location, ...] = ()
    variant: str = ""
    value_range: ValueRange = "full"
    store: Path | None = None

    @property
    def remote(self) -> bool:
        """Whether the records have to be fetched from another machine."""
        return any(not isinstance(file, Path) for file in self.files)

    def own_split(self) -> tuple[Records, Records] | None:
        """What the source itself says to learn from and to hold out (validation, or else test); None without both."""
        by_split = {part.split: part for part in self.parts}
        held_out = by_split.get("validation") or by_split.get("test")
        return (by_split["train"], held_out) if "train" in by_split and held_out else None

    def spread(self, count: int, runs: int) -> Iterator[Content]:
        """About `count` records, in so many runs of neighbours, spread over all: neighbours cost little more than one.

        Of what has to be fetched it is the first run alone.
        """
        total = sum(map(len, self.parts))
        for part in self.parts:
            length = max(1, -(-count * len(part) // (max(1, total) * runs)))
            last = max(0, len(part) - length)
            starts = [0] if self.remote else sorted({k * last // max(1, runs - 1) for k in range(runs)})
            rows = sorted({row for start in starts for row in range(start, min(start + length, len(part)))})
            yield from part.read(rows)

    def files_digest(self) -> str:
        """Whether it has changed: of the names and sizes of its files, and of their times, in which copies differ.

        Of a file elsewhere it has the identity that its keeper gives it. A source that lies in no file (the embedded
        digits) has a digest of its pixels.
        """
        digest = hashlib.blake2b(digest_size=16)
        records = (entry for part in self.parts for entry in zip(part.names, part, strict=True))
        for name, content in ((path.name, path) for path in self.files) if self.files else records:
            try:
                if isinstance(content, Path):
                    status = os.stat(content)
                    found = f"{status.st_size}\0{status.st_mtime_ns}"
                elif isinstance(content, np.ndarray):
                    found = f"{content.shape}\0{hashlib.blake2b(content.tobytes(), digest_size=16).hexdigest()}"
                else:
                    found = content.identity() if isinstance(content, RemoteFile) else repr(content)
            except OSError as error:  # a broken link is a bad record, not the end
                found = error.strerror or str(error)
            digest.update(f"{name}\0{found}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
