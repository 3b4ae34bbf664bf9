"""IDX files, the format of MNIST: one file or a folder of them, gzipped or not; and Debian's copy of Fashion-MNIST.

A file is a magic number (two zero bytes, 8 for unsigned bytes, the number of dimensions), one big-endian 32-bit size a
dimension, and the values in row-major order. Images are (N, H, W), labels are (N,).
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tarflow.data.errors import DataError, check_unpacked
from tarflow.data.options import LoadOptions
from tarflow.data.records import SPLIT_ORDER, Records, RowNames, Source, Split
from tarflow.data.split_names import split_of

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

    `train-images-idx3-ubyte` and MNIST's `t10k-images-idx3-ubyte`, or other words for these (`split_names`). Raises
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
        split: Split | None = "all" if path.is_file() else _split(file)
        if split is None:
            raise DataError(f"{file}: expected train{_IMAGES}[.gz] or t10k{_IMAGES}[.gz], or a name with another split")
        if split in found:
            raise DataError(f"{path}: {found[split].name} and {file.name} are both the {split} split: expected one")
        found[split] = file
    parts, files = [], list[Path]()
    for split in sorted(found, key=SPLIT_ORDER.index):
        labels = _labels_beside(found[split])
        parts.append(_records(split, found[split], labels))
        files += [found[split], *([] if labels is None else [labels])]
    return Source(tuple(parts), files=tuple(files))


def read_idx(path: Path, check: Callable[[tuple[int, ...]], None] | None = None) -> Any:
    """The array in an IDX file of unsigned bytes. `check` gets its shape before anything more is read.

    Raises `DataError` naming the file: not a gzip file, another magic number or type, too few or too many bytes.
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
            shape = struct.unpack(f">{magic[3]}I", sizes)
            if check is not None:
                check(shape)
            count = math.prod(shape)
            possible = count <= packed * MOST_UNPACKED  # else they cannot be in there
            if possible:
                check_unpacked(str(path), packed, count)
            values = file.read(count + 1 if possible else 0)  # gzip unpacks no more than is asked for
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a gzip file, got {error}") from None
    if len(values) != count:
        unpacked = "more" if len(values) > count else start + len(values) if possible else "fewer"
        expected = f"{start + count} bytes for {'x'.join(map(str, shape))} values"
        raise DataError(f"{path}: expected {expected}, got {unpacked if zipped else packed}")
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


def _split(path: Path) -> Split | None:
    name = path.name.removesuffix(".gz").removesuffix(_IMAGES)
    return "test" if re.search(r"t10k$", name) else split_of(name)


def _labels_beside(images: Path) -> Path | None:
    name = images.name.removesuffix(".gz").removesuffix(_IMAGES) + _LABELS
    return next((path for path in (images.parent / name, images.parent / f"{name}.gz") if path.is_file()), None)


def _records(split: Split, path: Path, label_path: Path | None) -> Records:
    def of_images(shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or 0 in shape[1:]:
            raise DataError(f"{path}: expected images (N, H, W), got shape {shape}")

    def of_labels(shape: tuple[int, ...]) -> None:
        if shape != (len(images),):
            raise DataError(f"{label_path}: expected {len(images)} labels, one an image, got shape {shape}")

    images = read_idx(path, of_images)
    labels = None if label_path is None else read_idx(label_path, of_labels).tolist()
    return Records(split, RowNames([(path.name, len(images))]), labels, lambda rows: (images[k][None] for k in rows))
