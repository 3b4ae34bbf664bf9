"""IDX files, the format of MNIST: one file or a folder of them, gzipped or not; and Debian's copy of Fashion-MNIST.

A file is a magic number (two zero bytes, 8 for unsigned bytes, the number of dimensions), one big-endian 32-bit size a
dimension, and the values in row-major order. Images are (N, H, W), labels are (N,).
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tarflow.data.errors import DataError
from tarflow.data.records import SPLIT_ORDER, Part, RowNames, Source, Split
from tarflow.data.split_names import split_of

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
FASHION_MNIST_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_IMAGES = "-images-idx3-ubyte"
_LABELS = "-labels-idx1-ubyte"


def open_fashion_mnist() -> Source:
    """Fashion-MNIST, 28x28 grey, 10 classes, with its own split, from Debian's package."""
    if not FASHION_MNIST.is_dir():
        raise FileNotFoundError(
            f"fashion-mnist: {FASHION_MNIST} does not exist; install Debian's package dataset-fashion-mnist, "
            "or give the path of a folder with the IDX files"
        )
    source = open_idx_folder(FASHION_MNIST)
    return Source(source.parts, FASHION_MNIST_CLASSES, files=source.files)


def is_idx_images(path: Path) -> bool:
    """Whether the name of the file is that of IDX images, such as `t10k-images-idx3-ubyte.gz`."""
    return path.name.removesuffix(".gz").endswith(_IMAGES) and not path.name.startswith(".")


def open_idx_folder(folder: Path) -> Source:
    """The files of images in a folder, in the splits that their names tell, and labels beside them; each may be `.gz`.

    `train-images-idx3-ubyte` and MNIST's `t10k-images-idx3-ubyte`, or other words for these (`split_names`). Raises
    `DataError` that begins with `folder`: names that speak of no split, or two files for one.
    """
    found: dict[Split, Path] = {}
    for path in sorted(folder.iterdir()):
        if not is_idx_images(path) or (path.suffix == ".gz" and path.with_suffix("").is_file()):
            continue
        name = path.name.removesuffix(".gz").removesuffix(_IMAGES)
        split = "test" if re.search(r"t10k$", name) else split_of(name)
        if split is None:
            raise DataError(f"{path}: expected train{_IMAGES}[.gz] or t10k{_IMAGES}[.gz], or a name with another split")
        if split in found:
            raise DataError(f"{folder}: {found[split].name} and {path.name} are both the {split} split: expected one")
        found[split] = path
    parts, files = [], []
    for split in SPLIT_ORDER:
        if split in found:
            parts.append(_open_part(found[split], split))
            files += _files(found[split])
    return Source(tuple(parts), files=tuple(files))


def open_idx_file(path: Path) -> Source:
    """One file of images; labels are taken from the file of that name beside it, where there is one."""
    return Source((_open_part(path, "all"),), files=tuple(_files(path)))


def read_idx(path: Path) -> Any:
    """The array in an IDX file of unsigned bytes.

    Raises `DataError` naming the file: not a gzip file, another magic number or type, too few or too many bytes.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a gzip file, got {error}") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08" or not 1 <= data[3] <= 4:
        raise DataError(
            f"{path}: expected an IDX file of unsigned bytes (magic 00 00 08 01..04), got {data[:4].hex(' ')}"
        )
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"{path}: ends within its header of {start} bytes")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    expected = start + int(np.prod(shape, dtype=object))  # whole numbers of Python: a false header must not overflow
    if len(data) != expected:
        sizes = "x".join(map(str, shape))
        raise DataError(f"{path}: expected {expected} bytes for {sizes} values, got {len(data)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _open_part(path: Path, split: Split) -> Part:
    images = read_idx(path)
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise DataError(f"{path}: expected images (N, H, W), got shape {images.shape}")
    labels = None
    label_path = _label_file(path)
    if label_path is not None:
        labels = read_idx(label_path)
        if labels.shape != images.shape[:1]:
            raise DataError(f"{label_path}: expected {len(images)} labels, one an image, got shape {labels.shape}")
        labels = labels.tolist()
    return Part(split, RowNames([(path.name, len(images))]), labels, lambda: iter(images[:, None]))


def _label_file(images: Path) -> Path | None:
    return _find(images.parent, images.name.removesuffix(".gz").removesuffix(_IMAGES) + _LABELS)


def _files(images: Path) -> list[Path]:
    return [path for path in (images, _label_file(images)) if path is not None]


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
