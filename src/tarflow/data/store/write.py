"""Writing a store (`store.read`) once, with memory for a few hundred images and the names of all.

Images are decoded one after the other and appended to a file. Killed on the way, it leaves a hidden directory that the
next try clears away; it starts anew, because decoding is quick beside training. `prepare` makes one at a place of one's
own; `open_cached` makes one in the cache directory, which may be deleted at any time.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import math
import os
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tarflow import __version__, digests, storage
from tarflow.config import to_dict
from tarflow.data.assemble import Layout, assemble
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.options import LoadOptions
from tarflow.data.sets import Splits, set_digest
from tarflow.data.sources import open_measured
from tarflow.data.store.read import (
    FILES,
    FORMAT,
    LABELS_FILE,
    MANIFEST_FILE,
    NAMES_FILE,
    PIXELS_FILE,
    Manifest,
    check_prepared,
    is_prepared,
    mapped_sets,
    open_records,
    read_manifest,
    readonly_tensor,
)
from tarflow.storage import check_vacant

STORES = "images"  # the folder of the cache directory that they lie in
POLL_SECONDS = 1.0  # between two looks whether another process has finished the same store
_COPY_BYTES = 1 << 24  # of the held-out images, at a time, to behind the others
ASKED = (  # the options that make other images or another split
    *("image_size", "channels", "levels", "held_out_fraction", "split_seed"),
    *("image_column", "label_column", "value_range"),
    *("aspect", "pad_with"),
)
Asked: TypeAlias = tuple[tuple[str, str], ...]
_ALIKE = "upright by EXIF orientation; transparency over white; 16 bits rounded to 8; scaled (bicubic, antialiased) "
PREPROCESSING = {  # in words, by the aspect
    "crop": _ALIKE + "until it covers the size, cropped to its middle; images of that size as they are",
    "pad": _ALIKE + "until it fits in, padded to the size; images of that size as they are",
    "stretch": _ALIKE + "to the size, whatever its shape; images of that size as they are",
}


def prepare(
    source: str,
    out: str | Path,
    options: LoadOptions | None = None,
    *,
    variant: str = "",
    force: bool = False,
    **fields: Any,
) -> tuple[Manifest, bool]:
    """Pack `source` into a store at `out`; its manifest, and whether it was there already.

    `out` is up to date where it was prepared from the same files (names, sizes and times) for the same options.

    Args:
        source, options, fields: as for `load`.
        variant: a name for this version of the data set, in place of what its files say.
        force: replace what was prepared otherwise.

    Raises:
        FileExistsError: `out` is something else, or was prepared from something else and not `force`.
        InUse: another process prepares `out`.
        DataError: as `load`; the source changed while it was read.
    """
    out, wanted = Path(out), (options or LoadOptions()).replace(**fields)
    if wanted.crop_from is not None:  # windows are cut by who trains
        wanted = wanted.replace(image_size=wanted.crop_from, crop_from=None)
    if not out.name:
        raise FileExistsError(f"{out}: expected a directory by its own name, which is made new")
    if is_prepared(source):
        raise DataError(f"{source}: is prepared already; expected the images that it was made of")
    opened = open_measured(source, wanted)
    opened = dataclasses.replace(opened, variant=variant or opened.variant)
    asked, files = _asked(wanted, variant), opened.files_digest()

    def known() -> Manifest | None:
        """That of what is there and may stay. FileExistsError where `out` may not be replaced."""
        if is_prepared(str(out)):
            if not force:
                return _still_good(source, out, asked, files, wanted.skip_bad)
            check_vacant(out, ours=FILES)  # what somebody put beside them would go with them
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out}: expected a new directory, or one that `tarflow prepare` made")
        return None

    if (manifest := known()) is not None:  # before the lock, which takes a place where one may write
        return manifest, True
    layout = Layout.train_and_held_out(source, opened, wanted)
    return _build(out, known, lambda folder: _fill(folder, layout, wanted, asked, files))


def _build(out: Path, known: Callable[[], Manifest | None], fill: Callable[[Path], Manifest]) -> tuple[Manifest, bool]:
    """`fill` a store at `out`, whole or not at all, unless another process has come and gone and left what is `known`.

    Raises InUse where another process is writing it.
    """
    place = storage.behind_links(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    with storage.exclusive_name(place):
        if (manifest := known()) is not None:
            return manifest, True
        storage.remove_leftovers(place.parent, place.name)
        with storage.replacing_directory(place) as folder:
            return fill(folder), False


def _asked(options: LoadOptions, variant: str = "") -> Asked:
    """What a store is made for with these options, as (name, value) in words."""
    asked = tuple((name.replace("_", " "), repr(getattr(options, name))) for name in ASKED)
    return (*asked, ("variant", repr(variant)))


def _still_good(source: str, out: Path, asked: Asked, files: str, skip_bad: bool) -> Manifest:
    """The manifest of `out` where it still is what would be written; FileExistsError naming what is not."""
    manifest = read_manifest(out)
    hint = "give another --out, or --force to replace it"
    known = dict(_asked(LoadOptions())) | dict(manifest.asked)  # an option that came later was left as it is by default
    for name, value in asked:
        if (before := known[name]) != value:
            raise FileExistsError(f"{out}: prepared with {name} {before}, asked for {name} {value}; {hint}")
    if files != manifest.files_digest:
        raise FileExistsError(f"{out}: prepared from {manifest.source}, and {source} is not the same files; {hint}")
    _check_skipped(out, manifest, skip_bad)
    open_records(str(out))  # raises where a file is missing or cut off
    return manifest


def _check_skipped(where: str | Path, manifest: Manifest, skip_bad: bool) -> None:
    """Raise DataError where records were left out and are not to be."""
    if manifest.skipped and not skip_bad:
        count, (name, reason) = len(manifest.skipped), manifest.skipped[0]
        raise DataError(f"{where}: {count} images were skipped (--skip-bad), the first is {name}: {reason}")


class _Appended(digests.Digesting):
    """A set whose images are appended to a file."""

    def __init__(self, file: BinaryIO, shape: tuple[int, int, int]) -> None:
        file.seek(0)
        file.truncate()  # of a first try
        super().__init__(file)
        self.shape = shape

    def add(self, image: Any) -> None:
        self.write(np.broadcast_to(image, self.shape).tobytes())  # grey is repeated where the others are RGB

    def images(self) -> Tensor:
        self.file.flush()
        count = self.facts["bytes"] // math.prod(self.shape)
        return readonly_tensor(np.memmap(self.file, np.uint8, "r", shape=(count, *self.shape)))


def _fill(folder: Path, layout: Layout, options: LoadOptions, asked: Asked, files: str) -> Manifest:
    """Fill the new directory `folder`. `files` is the `files_digest` of before.

    Raises `DataError`: as `load`; the source changed while it was read.
    """
    source, sinks = layout.source, dict[int, _Appended]()
    with open(folder / PIXELS_FILE, "w+b") as pixels, tempfile.TemporaryFile(dir=folder) as behind:

        def new_sink(number: int, capacity: int, shape: tuple[int, int, int]) -> _Appended:
            sinks[number] = _Appended((pixels, behind)[number], shape)
            return sinks[number]

        sets, skipped = assemble(layout, options.replace(class_names=None), new_sink)
        set_digests = [set_digest(sinks[k].digest, one.images.shape, one.labels) for k, one in enumerate(sets)]
        behind.seek(0)
        while piece := behind.read(_COPY_BYTES):
            sinks[0].write(piece)
    train, held_out = sets
    if train.labels is not None and held_out.labels is not None:
        (folder / LABELS_FILE).write_bytes(torch.cat([train.labels, held_out.labels]).numpy().astype("<i8").tobytes())
    text = "".join(f"{name}\0" for name in (*train.names, *held_out.names))
    (folder / NAMES_FILE).write_bytes(text.encode(errors="surrogateescape"))
    if source.files_digest() != files:
        raise DataError(f"{layout.where}: changed while it was read; prepare it again")

    manifest = Manifest(
        format=FORMAT,
        tarflow=__version__,
        source=layout.where,
        asked=asked,
        files_digest=files,
        shape=train.image_shape,
        levels=train.levels,
        labelled=train.labels is not None,
        class_names=train.class_names,
        variant=source.variant,
        train=len(train),
        held_out=len(held_out),
        train_digest=set_digests[0],
        held_out_digest=set_digests[1],
        own_split=layout.own_split,
        preprocessing=PREPROCESSING[options.aspect],
        skipped=skipped,
        value_range=source.value_range,
        aspect=options.aspect,
        pad_with=options.pad_with,
    )
    storage.write_json(folder / MANIFEST_FILE, to_dict(manifest))
    small = (MANIFEST_FILE, NAMES_FILE, *([LABELS_FILE] if manifest.labelled else []))
    facts = {PIXELS_FILE: sinks[0].facts} | {name: digests.file_facts(folder / name) for name in small}
    storage.write_json(folder / digests.DIGESTS_FILE, facts)
    return manifest


def open_cached(layout: Layout, options: LoadOptions, shape: tuple[int, int, int]) -> Splits | None:
    """The sets of a layout, mapped from a store, which is made where there is none; what `shape` they have is expected.

    None, with a `CacheWarning`, where it cannot be kept: there is no room, or no place to write to. A store that is not
    what was written is made again. Raises as `load`.
    """
    cache = storage.cache_directory()
    if cache is None:
        return None
    where, source = layout.where, layout.source
    files, levels = source.files_digest(), options.levels or source.levels
    how = (options.image_column, options.label_column, source.value_range, options.aspect, options.pad_with)
    facts = (files, shape, levels, *how, layout.own_split)  # sizes and channels are in the shape, asked for or not
    key = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    key.update(layout.which.data)
    place = cache / STORES / key.hexdigest()
    wanted = options.replace(channels=3 if shape[0] == 3 else options.channels)
    count, size = sum(layout.sizes()), sum(layout.sizes()) * math.prod(shape)

    def fill(folder: Path) -> Manifest:
        said = f"{where}: {count} images are decoded once, into {place} ({size / 1e9:.1f} GB)"
        warnings.warn(said, DataWarning, stacklevel=2)
        return _fill(folder, layout, wanted, _asked(options), files)

    def make() -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(place.parent).free) < size:
            raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed for {where}, {free / 1e9:.1f} GB are free")
        if place.is_symlink() or place.is_file():  # which is not followed
            place.unlink()
        _build(place, lambda: _sound(place), fill)

    with digests.optional(cache):
        while True:
            try:
                if _sound(place) is None:
                    make()
                break
            except storage.InUse:
                time.sleep(POLL_SECONDS)
    if (manifest := _sound(place)) is None:
        return None
    _check_skipped(where, manifest, options.skip_bad)
    stored = Layout.train_and_held_out(where, open_records(str(place)), options)
    (train, held_out), skipped = mapped_sets(stored, options)
    return Splits(train, held_out, layout.own_split, skipped, source.variant)


def _sound(place: Path) -> Manifest | None:
    """The manifest of a store of our own that is what was written; of its pixels the size alone is looked at."""
    try:
        status = os.lstat(place)
        if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            return None
        open_records(str(place))
        return check_prepared(place, pixels=False)
    except (OSError, DataError):
        return None
