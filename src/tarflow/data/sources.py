"""Which format a name or a path is: from what a user typed to a `Source` of records, not yet decoded."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tarflow.data.errors import DataError, DataWarning
from tarflow.data.parquet_files import find_parquet, find_parquet_below
from tarflow.data.prepared import is_prepared, prepared_source, read_manifest
from tarflow.data.records import Content, Source
from tarflow.data.request import NO_COLUMN, Reading
from tarflow.data.value_range import measure

_FILES = {"parquet": "Parquet files", "idx": "IDX files", "batches": "batches of ImageNet"}
GROUPS_PROBED, PROBED = 32, 512  # groups, and images in them, whose heads are read to learn the size of all
KNOWN_NAMES = ("digits", "fashion-mnist")


def open_source(source: str, reading: Reading | None = None) -> Source:
    """Find out what `source` is, and scan it; nothing is decoded yet. `reading` says how its records are read."""
    reading = reading or Reading()
    _check_columns(source, reading)
    if source == "digits":
        from tarflow.data.digits import open_digits

        return open_digits()
    from tarflow.data import idx

    if source == "fashion-mnist":
        return idx.open_fashion_mnist()
    if source.startswith("hub:"):
        from tarflow.data.hub import open_hub

        return open_hub(source, reading)
    path = Path(source).expanduser()
    if not source or not path.exists():
        near = difflib.get_close_matches(source, KNOWN_NAMES, 1)
        hint = f"; perhaps {near[0]}?" if near else ""
        raise FileNotFoundError(f"{source!r}: no such path, nor one of the known names {', '.join(KNOWN_NAMES)}{hint}")
    return _open_folder(path, reading) if path.is_dir() else _open_file(path, reading)


def _check_columns(source: str, reading: Reading) -> None:
    """Raise `DataError` where columns are asked for of what has none."""
    given = [name for name in (reading.image_column, reading.label_column) if name not in ("", NO_COLUMN)]
    path = Path(source).expanduser()
    if not given or not reading.strict or source.startswith("hub:") or (path.is_file() and path.suffix == ".parquet"):
        return
    if source in KNOWN_NAMES or (
        path.exists() and not (path.is_dir() and _folder_kind(path) in ("parquet", "prepared"))
    ):
        raise DataError(f"{source}: has no column {given[0]!r}, as only Parquet files have any")


def open_measured(source: str, reading: Reading) -> Source:
    """`open_source` whose range of values is one of numbers, or "full"."""
    from tarflow.data.images import raw_values

    opened, value_range = open_source(source, reading), reading.value_range
    if value_range in ("auto", "percentile"):

        def read(content: Content) -> Any:
            return raw_values(content) if isinstance(content, bytes | Path) else None

        value_range = measure(source, opened, value_range, read)
    return dataclasses.replace(opened, value_range=value_range)


def common_size(source: str, reading: Reading | None = None) -> tuple[int, int] | None:
    """(H, W) of the images, where all of the `PROBED` that are looked at agree; else None. Nothing is decoded."""
    from tarflow.data.images import size_of

    if is_prepared(source):
        return read_manifest(Path(source).expanduser()).shape[1:]
    sizes = set()
    for part in open_source(source, reading).parts:
        groups = part.groups or ()
        far = source.startswith("hub:")  # of which one group is enough to wait for
        some = groups[:1] if far else groups[:: max(1, len(groups) // GROUPS_PROBED)]
        for contents in (group.read() for group in some):
            for content in contents[:: max(1, len(contents) * len(some) // PROBED)]:
                if isinstance(content, bytes | Path):
                    sizes.add(size_of(content))
        for row in itertools.islice(() if groups else part.contents(), 1):
            if isinstance(row, np.ndarray):
                sizes.add(row.shape[1:])  # as all of the array
    sizes.discard(None)
    return sizes.pop() if len(sizes) == 1 else None


def is_folder_of_images(source: str) -> bool:
    """Whether `source` is a folder whose files are images, one each, and not Parquet or IDX files, or a known name."""
    path = Path(source).expanduser()
    return bool(source) and source not in KNOWN_NAMES and path.is_dir() and _folder_kind(path) == "images"


def _folder_kind(path: Path) -> Literal["prepared", "parquet", "idx", "batches", "images"]:
    """What a folder holds, by the names of its files."""
    from tarflow.data import idx, imagenet
    from tarflow.data.folder import image_paths

    if is_prepared(str(path)):
        return "prepared"
    if find_parquet(path):
        return "parquet"
    if any(idx.is_idx_images(file) for file in path.iterdir()):
        return "idx"
    if any(imagenet.is_batch(file) for file in path.iterdir()):
        return "batches"
    if next(image_paths(path), None) is None and find_parquet_below(path):
        return "parquet"
    return "images"


def _open_folder(path: Path, reading: Reading) -> Source:
    from tarflow.data import folder, idx, imagenet, parquet

    kind = _folder_kind(path)
    if kind == "images":
        return folder.open_folder(path)
    if kind == "prepared":
        return prepared_source(path)
    beside = sum(folder.is_image_name(file.name) for file in path.iterdir())
    if beside > 1:  # one is a picture of the set
        warnings.warn(
            f"{path}: read as {_FILES[kind]}; {beside} images beside them are left out", DataWarning, stacklevel=2
        )
    if kind == "parquet":
        return parquet.open_parquet_folder(path, find_parquet(path) or find_parquet_below(path), reading)
    if kind == "idx":
        return idx.open_idx_folder(path)
    return imagenet.open_batches([file for file in path.iterdir() if imagenet.is_batch(file)])


def _open_file(path: Path, reading: Reading) -> Source:
    from tarflow.data import folder, idx, imagenet, npz, parquet
    from tarflow.data.images import SUFFIXES

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet.open_parquet_file(path, reading)
    if imagenet.is_batch(path):
        return imagenet.open_batches([path])
    if suffix == ".npz":
        return npz.open_npz(path)
    if idx.is_idx_images(path):
        return idx.open_idx_file(path)
    if suffix in SUFFIXES:
        return folder.open_image(path)
    raise DataError(
        f"{path}: expected a folder, .parquet, .npz, IDX images (*-images-idx3-ubyte[.gz]) or an image file"
    )
