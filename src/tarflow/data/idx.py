"""IDX files, the format of MNIST: one file or a folder of them, gzipped or not; and Debian's copy of Fashion-MNIST.

A file is a magic number (two zero bytes, 8 for unsigned bytes, the number of dimensions), one big-endian 32-bit size a
dimension, and the values in row-major order. Images are (N, H, W), labels are (N,).
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from tarflow.data.errors import DataError
from tarflow.data.records import SPLIT_ORDER, Part, RowNames, Source, Split
from tarflow.data.split_names import split_of
from tarflow.data.unpacked import check_unpacked

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
FASHION_MNIST_CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_IMAGES = "-images-idx3-ubyte"
_LABELS = "-labels-idx1-ubyte"
_READ_BYTES = 1 << 22  # at a time
MOST_UNPACKED = 1040  # times its size that a file of deflate can come to


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


def read_idx(path: Path, check: Callable[[tuple[int, ...]], None] | None = None) -> Any:
    """The array in an IDX file of unsigned bytes. `check` gets its shape before anything more is read.

    Raises `DataError` naming the file: not a gzip file, another magic number or type, too few or too many bytes.
    """
    try:
        opened = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115 - closed in the next line
        with opened as file:
            return _read_array(path, cast("IO[bytes]", file), check)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a gzip file, got {error}") from None


def _read_array(path: Path, file: IO[bytes], check: Callable[[tuple[int, ...]], None] | None) -> Any:
    """The header, then as many bytes as it says and the file can hold."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
        raise DataError(f"{path}: expected an IDX file of unsigned bytes (magic 00 00 08 01..04), got {magic.hex(' ')}")
    sizes = file.read(4 * magic[3])
    start = 4 + 4 * magic[3]
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: ends within its header of {start} bytes")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if check is not None:
        check(shape)
    count = math.prod(shape)
    packed = path.stat().st_size
    values = np.empty(0, np.uint8)
    if count <= packed * MOST_UNPACKED:  # else they cannot be in there
        check_unpacked(str(path), packed, count)
        values = np.empty(count, np.uint8)
    found, room = 0, memoryview(values.data)
    while found < len(values) and (data := file.read(min(_READ_BYTES, len(values) - found))):
        room[found : found + len(data)] = data
        found += len(data)
    more = found == count and bool(file.read(1))
    if found < count or more:
        kind = "x".join(map(str, shape))
        unpacked = "more" if more else str(start + found) if len(values) else "fewer"
        got = unpacked if path.suffix == ".gz" else str(packed)
        raise DataError(f"{path}: expected {start + count} bytes for {kind} values, got {got}")
    return values.reshape(shape)


def _open_part(path: Path, split: Split) -> Part:
    def of_images(shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or 0 in shape[1:]:
            raise DataError(f"{path}: expected images (N, H, W), got shape {shape}")

    def of_labels(shape: tuple[int, ...]) -> None:
        if shape != (len(images),):
            raise DataError(f"{label_path}: expected {len(images)} labels, one an image, got shape {shape}")

    images, labels = read_idx(path, of_images), None
    label_path = _label_file(path)
    if label_path is not None:
        labels = read_idx(label_path, of_labels).tolist()
    return Part(split, RowNames([(path.name, len(images))]), labels, lambda: iter(images[:, None]))


def _label_file(images: Path) -> Path | None:
    return _find(images.parent, images.name.removesuffix(".gz").removesuffix(_IMAGES) + _LABELS)


def _files(images: Path) -> list[Path]:
    return [path for path in (images, _label_file(images)) if path is not None]


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
