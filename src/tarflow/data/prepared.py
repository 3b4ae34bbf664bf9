"""A prepared directory: images of one size, decoded once, in files that are mapped and not read.

    DIR/prepared.json     what it was made of, how, and its digests (`Manifest`)
    DIR/pixels.npy        (N, C, H, W) uint8, those to learn from before those held out
    DIR/labels.npy        (N,) int64; only where there are labels
    DIR/names.bin, .npy   the names in UTF-8, one after the other, and (N + 1,) uint64 where each begins
    DIR/digests.json      sizes and digests of all of these, for `check_prepared`; opening reads none of it

The arrays are NumPy's own format, without pickles. The system keeps in memory what is used of them, as far as there is
room, and several processes share it. `data.prepare` writes such a directory, whole or not at all.
"""

from __future__ import annotations

import json
import mmap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from tarflow.config import ConfigError, check_value, from_dict
from tarflow.data.errors import DataError
from tarflow.data.labels import label_tensors
from tarflow.data.npz import npy_header
from tarflow.data.records import Part, Source
from tarflow.data.request import Request
from tarflow.data.sets import ImageSet, Splits
from tarflow.digests import DIGESTS_FILE, difference

MANIFEST_FILE, PIXELS_FILE, LABELS_FILE = "prepared.json", "pixels.npy", "labels.npy"
NAMES_FILE, OFFSETS_FILE = "names.bin", "names.npy"
FILES = (MANIFEST_FILE, PIXELS_FILE, LABELS_FILE, NAMES_FILE, OFFSETS_FILE, DIGESTS_FILE)
FORMAT = 1


@dataclass(frozen=True)
class Asked:
    """What a directory was prepared for: with anything else it would hold other images, or in another order."""

    image_size: int | tuple[int, int] | None
    channels: int | None
    levels: int | None
    held_out_fraction: float
    split_seed: int
    variant: str
    image_column: str = ""
    label_column: str = ""
    value_range: tuple[float, float] | Literal["full", "auto", "percentile"] = "full"

    def __post_init__(self) -> None:
        _coerce(self)


@dataclass(frozen=True)
class Manifest:
    """The contents of `prepared.json`.

    Attributes:
        format: of the directory. tarflow: the version that wrote it.
        source: as it was given. files_digest, content_digest: see `data.prepare`.
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
    value_range: tuple[float, float] | Literal["full", "auto", "percentile"] = "full"

    def __post_init__(self) -> None:
        _coerce(self)

    @property
    def total(self) -> int:
        return self.train + self.held_out


class FileNames(Sequence[str]):
    """The names `start … stop-1` of a prepared directory, read when they are asked for."""

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self.offsets = _load(path / OFFSETS_FILE, None, np.uint64)[start : stop + 1]
        with open(path / NAMES_FILE, "rb") as file:
            self.text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]  # counts negative ones from the end, and raises IndexError
        begin, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.text[begin:end].decode(errors="surrogateescape")


def is_prepared(source: str) -> bool:
    """Whether `source` is the path of a prepared directory."""
    return bool(source) and (Path(source).expanduser() / MANIFEST_FILE).is_file()


def read_manifest(path: Path) -> Manifest:
    """What `path`, a prepared directory, says of itself. Raises `DataError` naming the file where it is damaged."""
    file = path / MANIFEST_FILE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("format") != FORMAT:
            raise DataError(f"{file}: expected format {FORMAT}, got {values.get('format')!r}: prepare it again")
        return from_dict(Manifest, values, str(file))
    except (ConfigError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file}: not what `tarflow prepare` wrote: {error}") from None


def open_prepared(source: str, request: Request) -> Splits:
    """`load` of a prepared directory: nothing is read but its manifest and labels.

    Raises `DataError`: it was prepared at another size, or with other channels or levels, than are asked for; its files
    are damaged.
    """
    path = Path(source).expanduser()
    manifest = read_manifest(path)
    everything = _open(source, manifest, request)
    sets = [
        ImageSet(
            everything.images[start:stop],
            None if everything.labels is None else everything.labels[start:stop],
            FileNames(path, start, stop),
            manifest.levels,
            everything.class_names,
            mapped=True,
            known_digest=digest if everything.class_names == manifest.class_names else None,
        )
        for start, stop, digest in (
            (0, manifest.train, manifest.train_digest),
            (manifest.train, manifest.total, manifest.held_out_digest),
        )
    ]
    return Splits(sets[0], sets[1], True, manifest.skipped, manifest.variant)


def open_all_prepared(source: str, request: Request) -> ImageSet:
    """`load_all` of a prepared directory: the images to learn from, then those held out."""
    return _open(source, read_manifest(Path(source).expanduser()), request)


def check_prepared(path: str | Path, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Read all of a prepared directory once, and hold it against what was written; its manifest where it is the same.

    Args:
        progress: called with (bytes read, of how many).

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
        if (problem := difference(path / name, facts, count)) is not None:
            problems.append(f"{path / name}: {problem}")
    if problems:
        raise DataError(f"{'; '.join(problems)}: prepare it again, with --force")
    return read_manifest(path)


def _read_digests(path: Path) -> dict[str, dict[str, Any]]:
    """What `path` keeps of its files: {name: `digests.file_facts`}."""
    file = path / DIGESTS_FILE
    again = "prepare it again, with --force"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:  # of a version that did not write them, or lost
        raise DataError(f"{file}: missing, so that nothing tells what was written: {again}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        values = None
    kinds = {"bytes": int, "blake2b": str}
    if (
        not isinstance(values, dict)
        or not values.keys() - {LABELS_FILE} == {MANIFEST_FILE, PIXELS_FILE, NAMES_FILE, OFFSETS_FILE}
        or not all(isinstance(f, dict) and {k: type(v) for k, v in f.items()} == kinds for f in values.values())
    ):
        raise DataError(f"{file}: damaged: {again}")
    return values


def prepared_source(path: Path) -> Source:
    """A prepared directory as records: for those who go through it, and do not care for the memory map."""
    manifest = read_manifest(path)
    pixels, labels = _arrays(path, manifest)
    parts = []
    for split, start, stop in (("train", 0, manifest.train), ("validation", manifest.train, manifest.total)):
        own = None if labels is None else labels[start:stop].tolist()
        parts.append(Part(split, FileNames(path, start, stop), own, lambda a=start, b=stop: iter(pixels[a:b])))  # type: ignore[arg-type, misc]
    return Source(
        tuple(parts),
        manifest.class_names or None,
        manifest.levels,
        variant=manifest.variant,
        value_range=manifest.value_range,
    )


def _open(source: str, manifest: Manifest, request: Request) -> ImageSet:
    path = Path(source).expanduser()
    channels, height, width = manifest.shape
    for name, have, want in (
        ("image size", (height, width), request.size),
        ("channels", channels, request.channels),
        ("levels", manifest.levels, request.levels),
    ):
        if want not in (None, have):
            raise DataError(
                f"{source}: prepared with {name} {_text(have)}, asked for {_text(want)}: "
                f"ask for what it has, or prepare {manifest.source} once more, into another directory"
            )
    pixels, numbers = _arrays(path, manifest)
    part = Part(
        "all", FileNames(path, 0, manifest.total), None if numbers is None else numbers.tolist(), lambda: iter(pixels)
    )
    described = Source((part,), manifest.class_names or None, manifest.levels)
    labels, class_names = label_tensors(source, described, [part], [range(manifest.total)], request.class_names)
    return ImageSet(readonly_tensor(pixels), labels[0], part.names, manifest.levels, class_names, mapped=True)


def _arrays(path: Path, manifest: Manifest) -> tuple[Any, Any]:
    """The pixels, mapped, and the labels or None. Raises `DataError` naming the file that does not fit."""
    total = manifest.total
    pixels = _load(path / PIXELS_FILE, (total, *manifest.shape), np.uint8)
    labels = _load(path / LABELS_FILE, (total,), np.int64) if manifest.labelled else None
    offsets = _load(path / OFFSETS_FILE, (total + 1,), np.uint64)
    names = path / NAMES_FILE
    if int(offsets[0]) != 0 or not bool((offsets[:-1] <= offsets[1:]).all()):
        raise DataError(f"{path / OFFSETS_FILE}: damaged, the names do not follow each other")
    if not names.is_file() or names.stat().st_size != int(offsets[-1]):
        raise DataError(f"{names}: missing or damaged: prepare {manifest.source} again")
    return pixels, labels


def _load(file: Path, shape: tuple[int, ...] | None, kind: type) -> Any:
    """The array of a file, mapped; None takes any number of values. Raises DataError where it is of another kind."""
    try:
        with file.open("rb") as opened:
            found, fortran, dtype = npy_header(opened)
            start = opened.tell()
        fits = found == shape or (shape is None and len(found) == 1 and found[0] >= 0)
        if fits and dtype == kind and not fortran:  # else NumPy maps whatever the header says, and may die of it
            return np.memmap(file, kind, "r", start, found) if 0 not in found else np.empty(found, kind)
    except PermissionError:
        raise
    except Exception as error:  # NumPy reads the header as Python's own syntax, and raises what its parser does
        reason = getattr(error, "strerror", None) or "not the array that was written"  # NumPy speaks of pickles
        raise DataError(f"{file}: missing or damaged: {reason}") from None
    raise DataError(f"{file}: expected {np.dtype(kind)} of shape {shape}, got {dtype} of {found}")


def readonly_tensor(array: Any) -> Tensor:
    """The array as a tensor on the same memory. It is read-only, which torch does not know and warns of.

    Mapped so that it could be written to (`torch.from_file`, mode "c"), the system would count it as memory that may be
    needed, and refuse files larger than what it has.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _coerce(values: Asked | Manifest) -> None:
    """Tuples where JSON has lists; ConfigError where a field has another type."""
    for entry in fields(values):
        object.__setattr__(values, entry.name, check_value(type(values), entry.name, getattr(values, entry.name)))


def _text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
