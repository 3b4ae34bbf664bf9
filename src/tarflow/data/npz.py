"""A NumPy archive: key `images`, uint8, and optionally `labels`. Images are read as they are needed."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tarflow.data.errors import DataError
from tarflow.data.records import Part, RowNames, Source
from tarflow.data.unpacked import check_unpacked

_CHUNK_BYTES = 1 << 22  # read at a time


@dataclass(frozen=True)
class Member:
    """One array of an archive: what its header says, and where it is."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: Any
    fortran: bool

    def read(self) -> Any:
        """All of it."""
        with reading(self.path), np.load(self.path, allow_pickle=False) as archive:
            return archive[self.key]

    def rows(self) -> Iterator[Any]:
        """Row by row, with memory for a few megabytes. Raises `DataError` naming the file where it is damaged."""
        if self.fortran:  # the rows are not one after the other
            yield from self.read()
            return
        size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        step = max(1, _CHUNK_BYTES // size)
        with reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as file:
            npy_header(file)
            for start in range(0, self.shape[0], step):
                count = min(step, self.shape[0] - start)
                data = file.read(count * size)
                if len(data) < count * size:
                    raise DataError(f"{self.path}: not a readable .npz archive: key '{self.key}' ends too early")
                yield from np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


def open_member(path: Path, key: str) -> Member:
    """The array `key` of the archive. Raises `DataError` naming the file: not an archive, no such key, a pickle."""
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: expected an .npz archive, got another or a damaged file")
    with reading(path), zipfile.ZipFile(path) as archive:
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        if key not in keys:
            raise DataError(f"{path}: expected a key '{key}', got {', '.join(keys) or 'no keys'}")
        entry = archive.getinfo(f"{key}.npy")
        with archive.open(entry) as file:
            shape, fortran, dtype = npy_header(file)
    if dtype.hasobject:
        raise DataError(f"{path}: not a readable .npz archive: key '{key}' is a pickle, which is never loaded")
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize > entry.file_size:
        raise DataError(f"{path}: not a readable .npz archive: key '{key}' ends too early")
    check_unpacked(f"{path}: key '{key}'", entry.compress_size, entry.file_size)
    return Member(path, key, shape, dtype, fortran)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what a damaged archive raises into one `DataError` that names the file."""
    try:
        yield
    except DataError:
        raise
    except (PermissionError, FileNotFoundError):
        raise
    except MemoryError:
        raise DataError(f"{path}: not a readable .npz archive: an array larger than the memory") from None
    except Exception as error:  # zip, zlib and NumPy, which reads a header as Python's own syntax, raise what they meet
        raise DataError(f"{path}: not a readable .npz archive: {error}") from None


def open_npz(path: Path) -> Source:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, and labels (N,), whole numbers from 0.

    Other keys are not read. Raises `DataError` naming the file and the key.
    """
    images = open_member(path, "images")
    layout = _layout(images)
    labels = None
    with reading(path), zipfile.ZipFile(path) as archive:
        labelled = "labels.npy" in archive.namelist()
    if labelled:
        member = open_member(path, "labels")  # whose shape is looked at before it is unpacked
        if member.shape != images.shape[:1] or not np.issubdtype(member.dtype, np.integer):
            raise DataError(
                f"{path}: key 'labels': expected {images.shape[0]} whole numbers, "
                f"got {member.dtype} of shape {member.shape}"
            )
        labels = member.read()
        if labels.size and labels.min() < 0:
            raise DataError(f"{path}: key 'labels': expected whole numbers from 0, got {labels.min()}")
        labels = labels.tolist()

    def contents() -> Iterator[Any]:
        for row in images.rows():
            yield row[None] if layout == "grey" else row if layout == "first" else row.transpose(2, 0, 1)

    return Source((Part("all", RowNames([(path.name, images.shape[0])]), labels, contents),), files=(path,))


def _layout(images: Member) -> str:
    """Where the channels of (N, …) are: `grey` has none, `first` is (C, H, W), `last` is (H, W, C)."""
    expected = "expected uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
    got = f"{images.dtype} of shape {images.shape}"
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape[1:]:
        raise DataError(f"{images.path}: key 'images': {expected}, got {got}")
    if len(shape) == 3:
        return "grey"
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        raise DataError(
            f"{images.path}: key 'images': {expected}, got {got}{', which could be either' if first else ''}"
        )
    return "first" if first else "last"


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether in Fortran's order, and dtype; what follows in `file` are the values."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
