"""The store that is made on its own: in the cache directory, of a set that does not fit into memory, or is far away.

It is found again by the files of the source, what their records become, and the split. It may be deleted at any time.
`tarflow prepare` makes the same store at a place of one's own.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import shutil
import stat
import time
import warnings
from pathlib import Path

from tarflow import digests, storage
from tarflow.data.assemble import Layout
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.options import LoadOptions
from tarflow.data.records import Source
from tarflow.data.sets import Splits
from tarflow.data.store.fingerprint import files_digest
from tarflow.data.store.read import Manifest, check_prepared, open_prepared
from tarflow.data.store.write import asked_of, build_store, check_skipped

STORES = "images"  # the folder of the cache directory that they lie in
POLL_SECONDS = 1.0  # between two looks whether another process has finished the same store


def open_cached(
    where: str, source: Source, layout: Layout, options: LoadOptions, shape: tuple[int, int, int]
) -> Splits | None:
    """The sets of a layout, mapped from a store, which is made where there is none; what `shape` they have is expected.

    None, with a `CacheWarning`, where it cannot be kept: there is no room, or no place to write to. A store that is not
    what was written is made again. Raises as `load`.
    """
    cache = storage.cache_directory()
    if cache is None:
        return None
    files, levels = files_digest(source), options.levels or source.levels
    how = (options.reading.image_column, options.reading.label_column, source.value_range)
    facts = (files, shape, levels, *how, layout.own_split)  # sizes and channels are in the shape, asked for or not
    key = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    for numbers in layout.sets:
        key.update(numbers.data)
    place = cache / STORES / key.hexdigest()
    with digests.optional(cache):
        while True:
            try:
                if _sound(place) is None:
                    _make(place, where, source, layout, options, shape, files)
                break
            except storage.InUse:
                time.sleep(POLL_SECONDS)
    if (manifest := _sound(place)) is None:
        return None
    check_skipped(where, manifest, options.skip_bad)
    splits = open_prepared(str(place), options, where)
    return Splits(splits.train, splits.held_out, layout.own_split, splits.skipped, source.variant)


def _sound(place: Path) -> Manifest | None:
    """The manifest of a store of our own that is what was written; of its pixels the size alone is looked at."""
    try:
        status = os.lstat(place)
        if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            return None
        open_prepared(str(place), LoadOptions())
        return check_prepared(place, pixels=False)
    except (OSError, DataError):
        return None


def _make(
    place: Path,
    where: str,
    source: Source,
    layout: Layout,
    options: LoadOptions,
    shape: tuple[int, int, int],
    files: str,
) -> None:
    count, size = sum(layout.sizes()), sum(layout.sizes()) * math.prod(shape)
    place.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(place.parent).free) < size:
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed for {where}, {free / 1e9:.1f} GB are free")
    said = f"{where}: {count} images are decoded once, into {place} ({size / 1e9:.1f} GB)"
    wanted = options.replace(channels=3 if shape[0] == 3 else options.channels)

    if place.is_symlink() or place.is_file():  # which is not followed
        place.unlink()

    def known() -> Manifest | None:
        if (found := _sound(place)) is None:
            warnings.warn(said, DataWarning, stacklevel=2)
        return found

    build_store(place, known, where, source, layout, wanted, asked_of(options), files)
