"""A store: images of one size, decoded once, in files that are mapped and not read.

    DIR/prepared.json   what it was made of, how, and the digests of its sets (`Manifest`)
    DIR/pixels.bin      (N, C, H, W) uint8, those to learn from before those held out
    DIR/labels.bin      (N,) int64; only where there are labels
    DIR/names.bin       the names in UTF-8, one after the other
    DIR/name_ends.bin   (N,) uint64, where each of them ends
    DIR/digests.json    sizes and digests of all of these, for `check_prepared`

The arrays are bare numbers, little-endian, whose shapes are in the manifest. The system keeps in memory what is used of
them, as far as there is room, and several processes share it. `store.write` writes a store, whole or not at all.
"""

from __future__ import annotations

import json
import math
import mmap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tarflow.config import ConfigError, check_value, from_dict
from tarflow.data.errors import DataError
from tarflow.data.labels import label_tensors
from tarflow.data.options import LoadOptions, Reading
from tarflow.data.records import Records, Source
from tarflow.data.sets import ImageSet, Splits
from tarflow.data.value_range import ValueRange
from tarflow.digests import DIGESTS_FILE, difference

MANIFEST_FILE, PIXELS_FILE, LABELS_FILE = "prepared.json", "pixels.bin", "labels.bin"
NAMES_FILE, ENDS_FILE = "names.bin", "name_ends.bin"
FILES = (MANIFEST_FILE, PIXELS_FILE, LABELS_FILE, NAMES_FILE, ENDS_FILE, DIGESTS_FILE)
FORMAT = 2
AGAIN = "prepare it again, with --force"


class _Coerced:
    def __post_init__(self) -> None:
        """Tuples where JSON has lists; ConfigError where a field has another type."""
        for entry in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, entry.name, check_value(type(self), entry.name, getattr(self, entry.name)))


@dataclass(frozen=True)
class Asked(_Coerced):
    """What a store was prepared for: with anything else it would hold other images, or in another order."""

    image_size: int | tuple[int, int] | None
    channels: int | None
    levels: int | None
    held_out_fraction: float
    split_seed: int
    variant: str
    image_column: str = ""
    label_column: str = ""
    value_range: ValueRange = "full"


@dataclass(frozen=True)
class Manifest(_Coerced):
    """The contents of `prepared.json`.

    Attributes:
        format: of the store. tarflow: the version that wrote it.
        source: as it was given. files_digest, content_digest: see `store.fingerprint`; the latter only where somebody
            prepared it by hand.
        shape: (C, H, W). train, held_out: how many. train_digest, held_out_digest: see `ImageSet.digest`.
        preprocessing: what was done to the images, in words.
        own_split: the split is the source's own, and not a seeded one.
        skipped: (name, reason) of the records that could not be read.
        value_range: what that of images of more than 8 bits came to.
    """

    format: int
    tarflow: str
    source: str
    asked: Asked
    files_digest: str
    content_digest: str
    shape: tuple[int, int, int]
    levels: int
    labelled: bool
    class_names: tuple[str, ...]
    variant: str
    train: int
    held_out: int
    train_digest: str
    held_out_digest: str
    own_split: bool
    preprocessing: str
    skipped: tuple[tuple[str, str], ...]
    value_range: ValueRange = "full"

    @property
    def total(self) -> int:
        return self.train + self.held_out


class FileNames(Sequence[str]):
    """The names `start … stop-1` of a store, read when they are asked for."""

    def __init__(self, path: Path, ends: Any, start: int, stop: int) -> None:
        self.ends, self.start, self.stop = ends, start, stop
        with open(path / NAMES_FILE, "rb") as file:
            self.text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        row = range(self.start, self.stop)[index]  # counts negative ones from the end, and raises IndexError
        begin = int(self.ends[row - 1]) if row else 0
        return self.text[begin : int(self.ends[row])].decode(errors="surrogateescape")


def is_prepared(source: str) -> bool:
    """Whether `source` is the path of a store."""
    return bool(source) and (Path(source).expanduser() / MANIFEST_FILE).is_file()


def read_manifest(path: Path) -> Manifest:
    """What a store says of itself. Raises `DataError` naming the file where it is damaged."""
    file = path / MANIFEST_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("format") != FORMAT:
            raise DataError(f"{file}: expected format {FORMAT}, got {values.get('format')!r}: prepare it again")
        return from_dict(Manifest, values, str(file))
    except (ConfigError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file}: not what `tarflow prepare` wrote: {error}") from None


def open_prepared(source: str, options: LoadOptions, where: str = "") -> Splits:
    """`load` of a store, which messages call `where`: nothing is read but its manifest, labels and ends of names.

    Raises `DataError`: it was prepared at another size, or with other channels or levels, than are asked for; its files
    are damaged.
    """
    everything, manifest = open_whole(source, options, where)
    own_names = everything.class_names == manifest.class_names
    path, ends = Path(source).expanduser(), everything.names.ends  # type: ignore[attr-defined]

    def part(start: int, stop: int, digest: str) -> ImageSet:
        labels = None if everything.labels is None else everything.labels[start:stop]
        names = FileNames(path, ends, start, stop)
        known = digest if own_names else None
        return ImageSet(
            everything.images[start:stop], labels, names, manifest.levels, everything.class_names, True, known
        )

    train = part(0, manifest.train, manifest.train_digest)
    held_out = part(manifest.train, manifest.total, manifest.held_out_digest)
    return Splits(train, held_out, True, manifest.skipped, manifest.variant)


def open_whole(source: str, options: LoadOptions, where: str = "") -> tuple[ImageSet, Manifest]:
    """`load_all` of a store: the images to learn from, then those held out; and what it says of itself."""
    path = Path(source).expanduser()
    manifest = read_manifest(path)
    channels, height, width = manifest.shape
    for name, have, want in (
        ("image size", (height, width), options.size),
        ("channels", channels, options.channels),
        ("levels", manifest.levels, options.levels),
    ):
        if want not in (None, have):
            raise DataError(
                f"{source}: prepared with {name} {_text(have)}, asked for {_text(want)}: "
                f"ask for what it has, or prepare {manifest.source} once more, into another directory"
            )
    pixels, labels, names = _arrays(path, manifest)
    part = Records("all", names, None if labels is None else labels.tolist(), iter)  # type: ignore[arg-type]
    described = Source((part,), manifest.class_names or None)
    rows = range(manifest.total)
    found, class_names = label_tensors(where or source, described, [part], [rows], options.class_names)
    images = readonly_tensor(pixels)
    return ImageSet(images, found[0], names, manifest.levels, class_names, mapped=True), manifest


def open_records(source: str, reading: Reading | None = None) -> Source:
    """A store as records: for those who go through it, and do not care for the map."""
    path = Path(source).expanduser()
    manifest = read_manifest(path)
    pixels, labels, names = _arrays(path, manifest)

    def part(split: Any, start: int, stop: int) -> Records:
        own = None if labels is None else labels[start:stop].tolist()
        return Records(
            split, FileNames(path, names.ends, start, stop), own, lambda rows: (pixels[start + k] for k in rows)
        )

    parts = part("train", 0, manifest.train), part("validation", manifest.train, manifest.total)
    return Source(
        parts,
        manifest.class_names or None,
        manifest.levels,
        variant=manifest.variant,
        value_range=manifest.value_range,
    )


def check_prepared(
    path: str | Path, progress: Callable[[int, int], None] | None = None, pixels: bool = True
) -> Manifest:
    """Read all of a store once, and hold it against what was written; its manifest where it is the same.

    Args:
        progress: called with (bytes read, of how many).
        pixels: False looks at their size alone.

    Raises:
        FileNotFoundError: no such directory.
        DataError: it is none that was prepared; or one line that names each file that is not what was written, and why.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such directory; expected one that `tarflow prepare` made")
    if not (path / MANIFEST_FILE).exists() and not (path / DIGESTS_FILE).exists():
        raise DataError(f"{path}: expected a directory that `tarflow prepare` made")
    digests = _read_digests(path)
    total, done, problems = sum(facts["bytes"] for facts in digests.values()), 0, []

    def count(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    for name, facts in digests.items():
        if name == PIXELS_FILE and not pixels:
            continue  # whose size is looked at when it is mapped
        if (problem := difference(path / name, facts, count)) is not None:
            problems.append(f"{path / name}: {problem}")
    if problems:
        raise DataError(f"{'; '.join(problems)}: {AGAIN}")
    return read_manifest(path)


def _read_digests(path: Path) -> dict[str, dict[str, Any]]:
    """What a store keeps of its files: {name: `digests.file_facts`}."""
    file = path / DIGESTS_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file}: missing, so that nothing tells what was written: {AGAIN}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        values = None
    kinds = {"bytes": int, "blake2b": str}
    if (
        not isinstance(values, dict)
        or values.keys() | {LABELS_FILE, DIGESTS_FILE} != set(FILES)
        or not all(isinstance(f, dict) and {k: type(v) for k, v in f.items()} == kinds for f in values.values())
    ):
        raise DataError(f"{file}: damaged: {AGAIN}")
    return values


def _arrays(path: Path, manifest: Manifest) -> tuple[Any, Any, FileNames]:
    """The pixels, mapped, the labels or None, and the names. Raises `DataError` naming the file that does not fit."""
    total = manifest.total
    pixels = _map(path / PIXELS_FILE, (total, *manifest.shape), np.uint8)
    labels = np.array(_map(path / LABELS_FILE, (total,), np.dtype("<i8"))) if manifest.labelled else None
    ends = _map(path / ENDS_FILE, (total,), np.dtype("<u8"))
    if not bool((ends[:-1] <= ends[1:]).all()):
        raise DataError(f"{path / ENDS_FILE}: damaged, the names do not follow each other: {AGAIN}")
    _map(path / NAMES_FILE, (int(ends[-1]) if total else 0,), np.uint8)
    return pixels, labels, FileNames(path, ends, 0, total)


def _map(file: Path, shape: tuple[int, ...], kind: Any) -> Any:
    """The array of a file, mapped read-only. Raises DataError where the file has another size."""
    expected = math.prod(shape) * np.dtype(kind).itemsize
    try:
        found = file.stat().st_size if file.is_file() else -1
        if found == expected and min(shape) >= 0:
            return np.memmap(file, kind, "r", shape=shape) if found else np.empty(shape, kind)
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: missing or damaged: {error}") from None
    problem = f"damaged, {found} bytes of {expected}" if found >= 0 else "missing"
    raise DataError(f"{file}: {problem}: {AGAIN}")


def readonly_tensor(array: Any) -> Tensor:
    """The array as a tensor on the same memory. It is read-only, which torch does not know and warns of.

    Mapped so that it could be written to (`torch.from_file`, mode "c"), the system would count it as memory that may be
    needed, and refuse files larger than what it has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
