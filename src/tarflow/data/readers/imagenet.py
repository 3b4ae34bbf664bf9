"""Downsampled ImageNet, of which two versions circulate whose bits/dim do not compare.

    imagenet64-oord2016         van den Oord et al. 2016 (arXiv 1601.06759): `train_64x64` and `valid_64x64`, which are
                                folders of PNG files, or Parquet files of such names; without labels
    imagenet64-chrabaszcz2017   Chrabaszcz et al. 2017 (arXiv 1707.08819): `train_data_batch_1.npz` … and
                                `val_data.npz`, with `data` (N, 3·64·64) uint8, red before green before blue, and
                                `labels` 1 … 1000

and the same for the other sizes. They were resampled with different filters, and that changes how many bits an image
needs. The later release also comes as pickles, which are never loaded: a pickle can run any code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tarflow.data.errors import DataError
from tarflow.data.options import LoadOptions
from tarflow.data.readers.npz import Archive
from tarflow.data.records import Source, Split, records_in_arrays

_BATCH = re.compile(r"(train_data_batch_(\d+)|val_data)(\.npz)?")
CLASSES = 1000


def oord_variant(names: Iterable[str]) -> str:
    """The variant where all of these names of folders or files are like `train_64x64` and `valid_64x64`, else "".

    >>> oord_variant(["train_64x64", "valid_64x64"]), oord_variant(["train", "valid"])
    ('imagenet64-oord2016', '')
    """
    found = [re.match(r"(?:train|valid)_(\d+)x(\d+)(?![^-_.])", name) for name in names]
    sizes = {(match[1], match[2]) if match else None for match in found}
    size = sizes.pop() if len(sizes) == 1 else None
    return f"imagenet{size[0]}-oord2016" if size is not None and size[0] == size[1] else ""


def claims(source: str) -> bool:
    """A batch of the release of 2017, as `.npz` or as a pickle, or a folder that holds some."""
    return bool(_batches(Path(source)))


def open_batches(source: str, options: LoadOptions | None = None) -> Source:
    """The batches of the release of 2017, in the order of their numbers; `train_…` is training, `val_…` validation.

    Label k of the files is class k - 1 here. Raises `DataError` naming the file: a pickle, other keys, shapes, labels.
    """
    groups: dict[Split, list[Path]] = {"train": [], "validation": []}
    for path in _batches(Path(source)):
        if path.suffix != ".npz":
            raise DataError(
                f"{path}: a pickle, which can run any code and is never loaded: expected the .npz form of this release"
            )
        groups["validation" if path.name.startswith("val") else "train"].append(path)
    parts, sides = [], dict[int, Path]()
    for split, paths in groups.items():
        files, labels = [], list[int]()
        for archive in map(Archive, paths):
            count, side = _shape(archive)
            files.append((archive.path.name, count, partial(_images, archive, side)))
            labels += [k - 1 for k in archive.labels(count, 1, CLASSES, f"1 to {CLASSES}, as in this release")]
            sides.setdefault(side, archive.path)
        if paths:
            parts.append(records_in_arrays(split, files, labels))
    if len(sides) > 1:
        (a, first), (b, second) = list(sides.items())[:2]
        raise DataError(f"{second}: images of {b}x{b}, and those of {first.name} are {a}x{a}: expected one size")
    return Source(
        tuple(parts),
        tuple(str(k) for k in range(CLASSES)),
        files=tuple(path for paths in groups.values() for path in paths),
        variant=f"imagenet{next(iter(sides))}-chrabaszcz2017",
    )


def _batches(place: Path) -> list[Path]:
    files = place.iterdir() if place.is_dir() else [place]
    found = [(match, path) for path in files if (match := _BATCH.fullmatch(path.name)) and path.is_file()]
    return [path for _, path in sorted(found, key=lambda entry: (int(entry[0][2] or 0), entry[1].name))]


def _shape(archive: Archive) -> tuple[int, int]:
    """How many images a batch has, and their side."""
    shape, dtype = archive.header("data")
    side = math.isqrt(shape[1] // 3) if len(shape) == 2 else 0
    if dtype != np.uint8 or side < 1 or shape[1] != 3 * side * side:
        raise DataError(f"{archive.path}: key 'data': expected uint8 of shape (N, 3·S·S), got {dtype} of {shape}")
    return shape[0], side


def _images(archive: Archive, side: int) -> Any:
    return archive.read("data").reshape(-1, 3, side, side)  # all of one archive, in memory while it is gone through
