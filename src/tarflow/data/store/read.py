"""A store: images of one size, decoded once, in files that are mapped and not read.

    DIR/prepared.json   what it was made of, how, and the digests of its sets (`Manifest`)
    DIR/pixels.bin      (N, C, H, W) uint8, those to learn from before those held out
    DIR/labels.bin      (N,) int64; only where there are labels
    DIR/names.bin       the names in UTF-8, each with a zero byte behind it
    DIR/digests.json    sizes and digests of all of these, for `check_prepared`

The arrays are bare numbers, little-endian, whose shapes are in the manifest. The system keeps in memory what is used of
them, as far as there is room, and several processes share it. `store.write` writes a store, whole or not at all.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tarflow.config import Aspect, ConfigError, PadWith, ValueRange, check_value, from_dict
from tarflow.data.assemble import Layout, Skipped, label_tensors
from tarflow.data.errors import DataError
from tarflow.data.options import LoadOptions
from tarflow.data.records import Records, Source, Split
from tarflow.data.sets import ImageSet
from tarflow.digests import DIGESTS_FILE, difference, recorded

MANIFEST_FILE, PIXELS_FILE, LABELS_FILE = "prepared.json", "pixels.bin", "labels.bin"
NAMES_FILE = "names.bin"
FILES = (MANIFEST_FILE, PIXELS_FILE, LABELS_FILE, NAMES_FILE, DIGESTS_FILE)
FORMAT = 2  # 1 had arrays of NumPy's
AGAIN = "prepare it again, with --force"


@dataclass(frozen=True)
class Manifest:
    """The contents of `prepared.json`.

    Attributes:
        format: of the store. tarflow: the version that wrote it.
        source: as it was given. asked: for what it was prepared: with anything else it would hold other images.
        files_digest: see `Source.files_digest`.
        shape: (C, H, W). train, held_out: how many. train_digest, held_out_digest: see `ImageSet.digest`.
        preprocessing: what was done to the images, in words.
        own_split: the split is the source's own, and not a seeded one.
        skipped: (name, reason) of the records that could not be read.
        value_range: what that of images of more than 8 bits came to.
        aspect, pad_with: how images of another shape got this one.
    """

    format: int
    tarflow: str
    source: str
    asked: tuple[tuple[str, str], ...]
    files_digest: str
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
    aspect: Aspect = "crop"
    pad_with: PadWith = "edge"

    def __post_init__(self) -> None:
        """Tuples where JSON has lists; ConfigError where a field has another type."""
        for entry in fields(self):
            object.__setattr__(self, entry.name, check_value(type(self), entry.name, getattr(self, entry.name)))

    @property
    def total(self) -> int:
        return self.train + self.held_out


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


def mapped_sets(layout: Layout, options: LoadOptions) -> tuple[list[ImageSet], Skipped]:
    """The sets of a layout of a store, mapped, and (name, reason) of what was skipped when it was made.

    Raises `DataError`: it was prepared at another size, or with other channels or levels, than are asked for; its files
    are damaged.
    """
    path = layout.source.store
    assert path is not None
    manifest = read_manifest(path)
    channels, height, width = manifest.shape
    asked = options.kept_size or (0, 0)
    larger = options.crop_from is None and height >= asked[0] and width >= asked[1]
    hint = f"; or train on windows of {height}x{width}, by --crop-from" if larger else ""
    for name, have, want in (
        ("image size", (height, width), options.kept_size),
        ("channels", channels, options.channels),
        ("levels", manifest.levels, options.levels),
    ):
        if want not in (None, have):
            texts = ["x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in (have, want)]
            raise DataError(
                f"{layout.where}: prepared with {name} {texts[0]}, asked for {texts[1]}: "
                f"ask for what it has, or prepare {manifest.source} once more, into another directory"
                + (hint if name == "image size" else "")
            )
    kept = [np.flatnonzero(layout.which == number) for number in range(layout.count)]
    labels, class_names = label_tensors(layout, kept, options.class_names)
    pixels = readonly_tensor(_map(path, PIXELS_FILE, (manifest.total, *manifest.shape), np.uint8))
    names = [name for part in layout.parts for name in part.names]
    digests = (manifest.train_digest, manifest.held_out_digest)
    known = layout.own_split and class_names == manifest.class_names  # else the labels are others than were digested
    sets = []
    for number, (rows, own) in enumerate(zip(kept, labels, strict=True)):
        part, digest = slice(rows[0], rows[-1] + 1), digests[number] if known else None
        whole = ImageSet(pixels[part], own, names[part], manifest.levels, class_names, True, digest)
        sets.append(whole.windowed(options.size))
    return sets, manifest.skipped


def open_records(source: str, options: LoadOptions | None = None) -> Source:
    """A store as records, of which nothing is read but the manifest, the labels and the names.

    Raises DataError naming the file that does not fit the manifest.
    """
    path = Path(source).expanduser()
    manifest = read_manifest(path)
    pixels = _map(path, PIXELS_FILE, (manifest.total, *manifest.shape), np.uint8)
    labels = _map(path, LABELS_FILE, (manifest.total,), np.dtype("<i8")).tolist() if manifest.labelled else None
    try:
        names = (path / NAMES_FILE).read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    except FileNotFoundError:
        names = []
    if len(names) != manifest.total:
        raise DataError(f"{path / NAMES_FILE}: damaged, {len(names)} names of {manifest.total}: {AGAIN}")

    def part(split: Split, start: int, stop: int) -> Records:
        own = None if labels is None else labels[start:stop]
        return Records(split, names[start:stop], own, lambda rows: map(pixels[start:stop].__getitem__, rows))

    return Source(
        (part("train", 0, manifest.train), part("validation", manifest.train, manifest.total)),
        manifest.class_names or None,
        manifest.levels,
        variant=manifest.variant,
        value_range=manifest.value_range,
        store=path,
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
    try:
        known = recorded(path, (MANIFEST_FILE, PIXELS_FILE, NAMES_FILE))
    except ValueError as error:
        raise DataError(f"{path}/{error}: {AGAIN}") from None
    names = [name for name in FILES if name in known and (pixels or name != PIXELS_FILE)]
    total, done = sum(known[name]["bytes"] for name in names), 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, total)

    found = ((name, difference(path / name, known[name], count)) for name in names)
    if problems := [f"{path / name}: {problem}" for name, problem in found if problem is not None]:
        raise DataError(f"{'; '.join(problems)}: {AGAIN}")
    return read_manifest(path)


def _map(path: Path, name: str, shape: tuple[int, ...], kind: Any) -> Any:
    """The array of a file, mapped read-only. Raises DataError where the file has another size."""
    expected = math.prod(shape) * np.dtype(kind).itemsize
    found = (path / name).stat().st_size if (path / name).is_file() else -1
    if found != expected or min(shape) < 0:
        problem = f"damaged, {found} bytes of {expected}" if found >= 0 else "missing"
        raise DataError(f"{path / name}: {problem}: {AGAIN}")
    return np.memmap(path / name, kind, "r", shape=shape) if found else np.empty(shape, kind)


def readonly_tensor(array: Any) -> Tensor:
    """The array as a tensor on the same memory. It is read-only, which torch does not know and warns of.

    Mapped so that it could be written to (`torch.from_file`, mode "c"), the system would count it as memory that may be
    needed, and refuse files larger than what it has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)
