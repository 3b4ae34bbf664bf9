"""A NumPy archive: key `images`, uint8, and optionally `labels`."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tarflow.data.errors import DataError, check_unpacked
from tarflow.data.options import LoadOptions
from tarflow.data.records import Source, records_in_arrays

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Archive:
    """The arrays of an `.npz` file, each unpacked when it is asked for. Errors are `DataError` naming file and key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not zipfile.is_zipfile(path):
            raise DataError(f"{path}: expected an .npz archive, got another or a damaged file")
        with self._opened() as archive:
            self.keys = [name.removesuffix(".npy") for name in archive.namelist()]

    def header(self, key: str) -> tuple[tuple[int, ...], Any]:
        """Shape and dtype of an array that can be unpacked; nothing but its header is."""
        if key not in self.keys:
            raise DataError(f"{self.path}: expected a key '{key}', got {', '.join(self.keys) or 'no keys'}")
        with self._opened() as archive, archive.open(entry := archive.getinfo(f"{key}.npy")) as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"an array of format {version}")
            shape, _, dtype = _HEADERS[version](file)
            room = entry.file_size - file.tell()
        if dtype.hasobject:
            raise DataError(f"{self.path}: not a readable .npz archive: key '{key}' is a pickle, which is never loaded")
        if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize > room:
            raise DataError(f"{self.path}: not a readable .npz archive: key '{key}' ends too early")
        check_unpacked(f"{self.path}: key '{key}'", entry.compress_size, entry.file_size)
        return shape, dtype

    def read(self, key: str) -> Any:
        """All of an array."""
        with self._opened(), np.load(self.path, allow_pickle=False) as arrays:
            return arrays[key]

    def labels(self, count: int, least: int, most: int, where: str = "") -> list[int]:
        """Key `labels`: `count` whole numbers from `least` to `most`. Their shape is looked at before they are read."""
        shape, dtype = self.header("labels")
        if shape != (count,) or not np.issubdtype(dtype, np.integer):
            raise DataError(f"{self.path}: key 'labels': expected {count} whole numbers, got {dtype} of shape {shape}")
        labels = self.read("labels")
        if labels.size and not least <= labels.min() <= labels.max() <= most:
            expected = where or f"whole numbers from {least}"
            got = f"{labels.min()} to {labels.max()}" if where else labels.min()
            raise DataError(f"{self.path}: key 'labels': expected {expected}, got {got}")
        return list(labels.tolist())

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        """Turn what a damaged archive raises into one `DataError` that names the file."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield archive
        except (DataError, PermissionError, FileNotFoundError):
            raise
        except MemoryError:
            raise DataError(f"{self.path}: not a readable .npz archive: an array larger than the memory") from None
        except Exception as error:  # zip, zlib and NumPy, which reads a header as Python's own syntax
            raise DataError(f"{self.path}: not a readable .npz archive: {error}") from None


def claims(source: str) -> bool:
    """A file of that suffix."""
    return Path(source).suffix.lower() == ".npz" and Path(source).is_file()


def open_npz(source: str, options: LoadOptions | None = None) -> Source:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, and labels (N,), whole numbers from 0.

    Other keys are not read. The images are unpacked, all of them, when the first one is asked for.
    """
    path = Path(source)
    archive = Archive(path)
    shape, dtype = archive.header("images")
    expected = f"{path}: key 'images': expected uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
    got = f"{dtype} of shape {shape}"
    if dtype != np.uint8 or len(shape) not in (3, 4) or 0 in shape[1:]:
        raise DataError(f"{expected}, got {got}")
    first, last = len(shape) == 3 or shape[1] in (1, 3), len(shape) == 4 and shape[3] in (1, 3)
    if first == last:
        raise DataError(f"{expected}, got {got}{', which could be either' if first else ''}")
    labels = archive.labels(shape[0], 0, 1 << 63) if "labels" in archive.keys else None

    def images() -> Any:
        found = archive.read("images")
        return found[:, None] if found.ndim == 3 else found.transpose(0, 3, 1, 2) if last else found

    return Source((records_in_arrays("all", [(path.name, shape[0], images)], labels),), files=(path,))
