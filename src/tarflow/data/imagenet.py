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
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tarflow.data.errors import DataError
from tarflow.data.npz import Member, open_member
from tarflow.data.records import Content, Part, RowNames, Source, Split

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


def is_batch(path: Path) -> bool:
    """Whether the name of a file is that of a batch of the release of 2017, as `.npz` or as a pickle."""
    return _BATCH.fullmatch(path.name) is not None and path.is_file()


def open_batches(files: Iterable[Path]) -> Source:
    """The batches of the release of 2017, in the order of their numbers; `train_…` is training, `val_…` validation.

    Label k of the files is class k - 1 here. Raises `DataError` naming the file: a pickle, other keys, shapes, labels.
    """
    groups: dict[Split, list[Path]] = {}
    for path in sorted(files, key=_number):
        if path.suffix != ".npz":
            raise DataError(
                f"{path}: a pickle, which can run any code and is never loaded: expected the .npz form of this release"
            )
        groups.setdefault("validation" if path.name.startswith("val") else "train", []).append(path)
    parts: list[Part] = []
    sides: dict[int, Path] = {}
    for split in ("train", "validation"):
        if split in groups:
            batches = [_open_batch(path) for path in groups[split]]
            sides |= {side: member.path for member, _, side in batches}
            parts.append(_part(split, batches))
    if len(sides) > 1:
        (a, first), (b, second) = list(sides.items())[:2]
        raise DataError(f"{second}: images of {b}x{b}, and those of {first.name} are {a}x{a}: expected one size")
    every = tuple(path for split in ("train", "validation") for path in groups.get(split, []))
    return Source(
        tuple(parts),
        tuple(str(k) for k in range(CLASSES)),
        files=every,
        variant=f"imagenet{next(iter(sides))}-chrabaszcz2017",
    )


def _open_batch(path: Path) -> tuple[Member, list[int], int]:
    """The rows of a batch, not yet read, its labels from 0, and the side of its images."""
    data, labels = open_member(path, "data"), open_member(path, "labels")
    side = math.isqrt(data.shape[1] // 3) if len(data.shape) == 2 else 0
    if data.dtype != np.uint8 or side < 1 or data.shape[1] != 3 * side * side:
        raise DataError(f"{path}: key 'data': expected uint8 of shape (N, 3·S·S), got {data.dtype} of {data.shape}")
    numbers = labels.read()
    if numbers.shape != data.shape[:1] or not np.issubdtype(numbers.dtype, np.integer):
        raise DataError(
            f"{path}: key 'labels': expected {data.shape[0]} whole numbers, got {numbers.dtype} of {numbers.shape}"
        )
    if numbers.size and (numbers.min() < 1 or numbers.max() > CLASSES):
        raise DataError(
            f"{path}: key 'labels': expected 1 to {CLASSES}, as in this release, got {numbers.min()} to {numbers.max()}"
        )
    return data, (numbers - 1).tolist(), side


def _part(split: Split, batches: list[tuple[Member, list[int], int]]) -> Part:
    names = RowNames([(data.path.name, data.shape[0]) for data, _, _ in batches])
    labels = [label for _, numbers, _ in batches for label in numbers]

    def contents() -> Iterator[Content]:
        for data, _, side in batches:
            for row in data.rows():
                yield row.reshape(3, side, side)

    return Part(split, names, labels, contents)


def _number(path: Path) -> tuple[int, str]:
    match = _BATCH.fullmatch(path.name)
    return (int(match[2] or 0) if match else 0, path.name)
