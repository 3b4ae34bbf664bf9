"""IDX files, the format of MNIST: one file or a folder of them, gzipped or not; and Debian's copy of Fashion-MNIST.

A file is a magic number (two zero bytes, 8 for unsigned bytes, the number of dimensions), one big-endian 32-bit size a
dimension, and the values in row-major order. Images are (N, H, W), labels are (N,).
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tarflow.data.errors import DataError, check_unpacked
from tarflow.data.names import split_of
from tarflow.data.options import LoadOptions
from tarflow.data.records import SPLIT_ORDER, Source, Split, records_in_arrays

NAME = "fashion-mnist"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
FASHION_MNIST_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_IMAGES, _LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"
MOST_UNPACKED = 1040  # times its size that a file of deflate can come to


def claims(source: str) -> bool:
    """A file of images, such as `t10k-images-idx3-ubyte.gz`, or a folder that holds some; or `fashion-mnist`."""
    return source == NAME or bool(_image_files(Path(source)))


def open_idx(source: str, options: LoadOptions | None = None) -> Source:
    """The images of a file; or of a folder, in the splits that the names of its files tell; labels lie beside them.

    `train-images-idx3-ubyte` and MNIST's `t10k-images-idx3-ubyte`, or other words for these (`names`). Raises
    `DataError` that begins with the folder: names that speak of no split, or two files for one.
    """
    if source == NAME:
        if not FASHION_MNIST.is_dir():
            raise FileNotFoundError(
                f"fashion-mnist: {FASHION_MNIST} does not exist; install Debian's package dataset-fashion-mnist, "
                "or give the path of a folder with the IDX files"
            )
        return dataclasses.replace(open_idx(str(FASHION_MNIST)), class_names=FASHION_MNIST_CLASSES)
    path = Path(source)
    found: dict[Split, Path] = {}
    for file in _image_files(path):
        name = _stem(file)
        split: Split | None = "all" if path.is_file() else "test" if name.endswith("t10k") else split_of(name)
        if split is None:
            raise DataError(f"{file}: expected train{_IMAGES}[.gz] or t10k{_IMAGES}[.gz], or a name with another split")
        if split in found:
            raise DataError(f"{path}: {found[split].name} and {file.name} are both the {split} split: expected one")
        found[split] = file
    parts, files = [], list[Path]()
    for split, file in sorted(found.items(), key=lambda entry: SPLIT_ORDER.index(entry[0])):
        files.append(file)
        images = read_idx(file, "images (N, H, W)", lambda shape: len(shape) == 3 and 0 not in shape[1:])
        labels, count, name = None, len(images), _stem(file) + _LABELS
        beside = (path for path in (file.with_name(name), file.with_name(f"{name}.gz")) if path.is_file())
        if (label_file := next(beside, None)) is not None:
            files.append(label_file)
            labels = read_idx(label_file, f"{count} labels, one an image", (count,).__eq__).tolist()
        parts.append(records_in_arrays(split, [(file.name, count, partial(np.expand_dims, images, 1))], labels))
    return Source(tuple(parts), files=tuple(files))


def read_idx(path: Path, expected: str = "", fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> Any:
    """The array in an IDX file of unsigned bytes; where its shape `fits`, which is looked at before more is read.

    Raises `DataError` naming the file: not a gzip file, another magic number, type or shape, too few or too many
    bytes.
    """
    packed, zipped = path.stat().st_size, path.suffix == ".gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
                got = magic.hex(" ")
                raise DataError(f"{path}: expected an IDX file of unsigned bytes (magic 00 00 08 01..04), got {got}")
            start = 4 + 4 * magic[3]
            sizes = file.read(start - 4)
            if len(sizes) < start - 4:
                raise DataError(f"{path}: ends within its header of {start} bytes")
            shape = tuple(np.frombuffer(sizes, ">u4").tolist())
            if not fits(shape):
                raise DataError(f"{path}: expected {expected}, got shape {shape}")
            count = math.prod(shape)
            possible = count <= packed * MOST_UNPACKED  # else they cannot be in there
            if possible:
                check_unpacked(str(path), packed, count)
            values = file.read(count + 1 if possible else 0)  # gzip unpacks no more than is asked for
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a gzip file, got {error}") from None
    if len(values) != count:
        unpacked = "more" if len(values) > count else start + len(values) if possible else "fewer"
        right = f"{start + count} bytes for {'x'.join(map(str, shape))} values"
        raise DataError(f"{path}: expected {right}, got {unpacked if zipped else packed}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _image_files(place: Path) -> list[Path]:
    """The files of images in a folder, sorted, or the file itself; an unpacked one goes before its `.gz`."""
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return [
        path
        for path in files
        if path.name.removesuffix(".gz").endswith(_IMAGES)
        and not path.name.startswith(".")
        and path.is_file()
        and not (place.is_dir() and path.suffix == ".gz" and path.with_suffix("").is_file())
    ]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(_IMAGES)
