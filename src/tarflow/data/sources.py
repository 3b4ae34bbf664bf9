"""Which format a name or a path is of: from what a user typed to a `Source` of records, not yet decoded."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from tarflow.config import ValueRange
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.images import head_of, number_text, raw_values
from tarflow.data.options import NO_COLUMN, LoadOptions
from tarflow.data.readers import digits, folder, hub, idx, imagenet, npz, parquet
from tarflow.data.records import Source
from tarflow.data.store import read as store

IMAGES, PIXELS = 1000, 4096  # that "auto" and "percentile" look at, and of each of them, spread over all
PERCENTILES = (0.1, 99.9)
PROBED, RUNS = 512, 32  # images whose heads are read to learn the size of all, in so many runs of neighbours


class Reader(NamedTuple):
    """A format. `claims` a name or a path, `open` it; `kind` says what is read where images lie beside it."""

    claims: Callable[[str], bool]
    open: Callable[[str, LoadOptions], Source]
    kind: str = ""
    columns: bool = False  # whether its columns have names


READERS = [  # the first that claims a source opens it
    Reader(digits.claims, digits.open_digits),
    Reader(hub.claims, hub.open_hub, columns=True),
    Reader(store.is_prepared, store.open_records, columns=True),  # the columns that it was made of
    Reader(idx.claims, idx.open_idx, "IDX files"),
    Reader(parquet.claims, parquet.open_parquet, "Parquet files", columns=True),
    Reader(imagenet.claims, imagenet.open_batches, "batches of ImageNet"),
    Reader(npz.claims, npz.open_npz),
    Reader(folder.claims, folder.open_folder),
]
KNOWN_NAMES = (digits.NAME, idx.NAME)


def find_reader(source: str) -> Reader:
    """The format of a source. Raises FileNotFoundError or `DataError` where there is none."""
    path = Path(source).expanduser()
    place = source if source in KNOWN_NAMES or not source else str(path)
    if place and (found := next((reader for reader in READERS if reader.claims(place)), None)):
        return found
    if not source or not path.exists():
        near = difflib.get_close_matches(source, KNOWN_NAMES, 1)
        hint = f"; perhaps {near[0]}?" if near else ""
        raise FileNotFoundError(f"{source!r}: no such path, nor one of the known names {', '.join(KNOWN_NAMES)}{hint}")
    raise DataError(
        f"{path}: expected a folder, .parquet, .npz, IDX images (*-images-idx3-ubyte[.gz]) or an image file"
    )


def open_source(source: str, options: LoadOptions | None = None) -> Source:
    """Find out what `source` is, and scan it; nothing is decoded yet. `options` say how its records are read.

    Raises:
        FileNotFoundError: no such path, nor a known name.
        DataError: one line that names the file or option, what was expected and what was found.
    """
    options, found = options or LoadOptions(), find_reader(source)
    given = [name for name in (options.image_column, options.label_column) if name not in ("", NO_COLUMN)]
    if given and options.strict and not found.columns:
        raise DataError(f"{source}: has no column {given[0]!r}, as only Parquet files have any")
    path = Path(source).expanduser()
    known = source in KNOWN_NAMES or not path.exists()
    if found.kind and not known and path.is_dir():
        beside = sum(folder.is_image_name(file.name) for file in path.iterdir())
        if beside > 1:  # one is a picture of the set
            said = f"{path}: read as {found.kind}; {beside} images beside them are left out"
            warnings.warn(said, DataWarning, stacklevel=2)
    return found.open(source if known else str(path), options)


def open_measured(source: str, options: LoadOptions) -> Source:
    """`open_source` whose range of values is one of numbers, or "full"."""
    opened, value_range = open_source(source, options), options.value_range
    if opened.store is not None:
        return opened  # which has its own
    if value_range in ("auto", "percentile"):
        value_range = _measured(source, opened, value_range)
    return dataclasses.replace(opened, value_range=value_range)


def _measured(where: str, source: Source, kind: Literal["auto", "percentile"]) -> ValueRange:
    """What "auto" or "percentile" comes to; "full", with a `DataWarning`, where no image has more than 8 bits."""
    found = []
    for content in source.spread(IMAGES, IMAGES):
        if (values := raw_values(content)) is not None:
            flat = values.reshape(-1)
            ends = [flat.min(), flat.max()] if kind == "auto" else []
            found.append(np.concatenate([flat[:: max(1, flat.size // PIXELS)], np.array(ends, flat.dtype)]))
    if not found:
        warnings.warn(f"{where}: --value-range {kind}: no image has more than 8 bits", DataWarning, stacklevel=3)
        return "full"
    every = np.concatenate([values.astype(np.float64) for values in found])
    low, high = (every.min(), every.max()) if kind == "auto" else np.percentile(every, PERCENTILES)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise DataError(
            f"{where}: --value-range {kind}: the values are from {number_text(low)} to {number_text(high)}: no range"
        )
    return float(low), float(high)


def common_shape(opened: Source) -> tuple[int, int, int] | None:
    """(C, H, W) of the images, where the sizes of all whose heads are looked at agree; else None. Nothing is decoded.

    C is 3 where one of them is in colour. A palette may turn out to be either, and is taken for grey.
    """
    contents = (content for content in opened.spread(PROBED, RUNS) if not isinstance(content, DataError))
    heads = (content.shape if isinstance(content, np.ndarray) else head_of(content) for content in contents)
    shapes = {head for head in heads if head is not None}
    sizes = {shape[1:] for shape in shapes}
    return (max(shape[0] for shape in shapes), *sizes.pop()) if len(sizes) == 1 else None


def is_folder_of_images(source: str) -> bool:
    """Whether `source` is a folder whose files are images, one each, and not Parquet or IDX files, or a known name."""
    path = Path(source).expanduser()
    return (
        bool(source) and source not in KNOWN_NAMES and path.is_dir() and find_reader(source).open is folder.open_folder
    )
