"""Writing a store (`store.read`) once, with memory for a few hundred images and the names of all.

Images are decoded one after the other and appended to a file. Killed on the way, it leaves a hidden directory that the
next try clears away; it starts anew, because decoding is quick beside training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tarflow import __version__, digests, storage
from tarflow.config import to_dict
from tarflow.data.assemble import Layout, assemble
from tarflow.data.errors import DataError
from tarflow.data.options import LoadOptions
from tarflow.data.records import Source
from tarflow.data.sets import SetDigest
from tarflow.data.sources import open_measured
from tarflow.data.store.fingerprint import files_digest
from tarflow.data.store.read import (
    FILES,
    FORMAT,
    LABELS_FILE,
    MANIFEST_FILE,
    NAMES_FILE,
    PIXELS_FILE,
    Manifest,
    is_prepared,
    open_prepared,
    read_manifest,
)
from tarflow.storage import check_vacant

_COPY_BYTES = 1 << 24  # of the held-out images, at a time, to behind the others
PREPROCESSING = (
    "upright by EXIF orientation; transparency over white; 16 bits rounded to 8; scaled (bicubic, antialiased) until "
    "it covers the size, cropped to its middle; images of that size as they are"
)


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
    if not out.name:
        raise FileExistsError(f"{out}: expected a directory by its own name, which is made new")
    if is_prepared(source):
        raise DataError(f"{source}: is prepared already; expected the images that it was made of")
    opened = open_measured(source, wanted.reading)
    opened = opened.replace(variant=variant or opened.variant)
    asked, files = asked_of(wanted, variant), files_digest(opened)

    def known() -> Manifest | None:
        """That of what is there and may stay. FileExistsError where `out` may not be replaced."""
        if out.exists() and not is_prepared(str(out)) and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out}: expected a new directory, or one that `tarflow prepare` made")
        if is_prepared(str(out)) and force:
            check_vacant(out, ours=FILES)  # what somebody put beside them would go with them
        if not is_prepared(str(out)) or force:
            return None
        return _still_good(source, out, asked, files, wanted.skip_bad)

    if (manifest := known()) is not None:  # before the lock, which takes a place where one may write
        return manifest, True
    layout = Layout.train_and_held_out(source, opened, wanted)
    return build_store(out, known, source, opened, layout, wanted, asked, files)


def build_store(
    out: Path,
    known: Callable[[], Manifest | None],
    source: str,
    opened: Source,
    layout: Layout,
    options: LoadOptions,
    asked: tuple[tuple[str, str], ...],
    files: str,
) -> tuple[Manifest, bool]:
    """`write_store` at `out`, whole or not at all, unless another process has come and gone and left what is `known`.

    Raises InUse where another process is writing it.
    """
    place = storage.behind_links(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    with storage.exclusive_name(place):
        if (manifest := known()) is not None:
            return manifest, True
        storage.remove_leftovers(place.parent, place.name)
        with storage.replacing_directory(place) as folder:
            return write_store(folder, source, opened, layout, options, asked, files), False


def asked_of(options: LoadOptions, variant: str = "") -> tuple[tuple[str, str], ...]:
    """What a store is made for with these options, as (name, value) in words."""
    asked: dict[str, Any] = {"image_size": options.image_size, "channels": options.channels, "levels": options.levels}
    asked |= {"held_out_fraction": options.held_out_fraction, "split_seed": options.split_seed, "variant": variant}
    asked |= {name: getattr(options.reading, name) for name in ("image_column", "label_column", "value_range")}
    return tuple((name.replace("_", " "), repr(value)) for name, value in asked.items())


def _still_good(source: str, out: Path, asked: tuple[tuple[str, str], ...], files: str, skip_bad: bool) -> Manifest:
    """The manifest of `out` where it still is what would be written; FileExistsError naming what is not."""
    manifest = read_manifest(out)
    hint = "give another --out, or --force to replace it"
    for name, value in asked:
        if (before := dict(manifest.asked).get(name)) != value:
            raise FileExistsError(f"{out}: prepared with {name} {before}, asked for {name} {value}; {hint}")
    if files != manifest.files_digest:
        raise FileExistsError(f"{out}: prepared from {manifest.source}, and {source} is not the same files; {hint}")
    check_skipped(out, manifest, skip_bad)
    open_prepared(str(out), LoadOptions())  # raises where a file is missing or cut off
    return manifest


def check_skipped(where: str | Path, manifest: Manifest, skip_bad: bool) -> None:
    """Raise DataError where records were left out and are not to be."""
    if manifest.skipped and not skip_bad:
        count, (name, reason) = len(manifest.skipped), manifest.skipped[0]
        raise DataError(f"{where}: {count} images were skipped (--skip-bad), the first is {name}: {reason}")


class _Appended:
    """A set whose images are appended to a file."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self.shape, self.digest, self.count = path, shape, SetDigest(), 0
        self.file = open(path, "wb")  # noqa: SIM115 - closed by who made it
        self.written = digests.Digesting(self.file)

    def __call__(self, image: Any) -> None:
        data = np.broadcast_to(image, self.shape).tobytes()  # grey is repeated where the others are RGB
        self.written.write(data)
        self.digest.update(data)
        self.count += 1


def write_store(
    folder: Path,
    source: str,
    opened: Source,
    layout: Layout,
    options: LoadOptions,
    asked: tuple[tuple[str, str], ...],
    files: str,
) -> Manifest:
    """Fill the new directory `folder`. `files` is the `files_digest` of before.

    Raises `DataError`: as `load`; the source changed while it was read.
    """
    made: dict[int, _Appended] = {}
    with contextlib.ExitStack() as closing:

        def new_sink(number: int, capacity: int, shape: tuple[int, int, int]) -> _Appended:
            if number in made:  # of a first try
                made[number].file.close()
            made[number] = _Appended(folder / (PIXELS_FILE if number == 0 else "held_out"), shape)
            closing.callback(made[number].file.close)
            return made[number]

        found = assemble(source, opened, layout, options.replace(class_names=None), new_sink)
        train, held_out = found.sinks
        held_out.file.close()
        with open(held_out.path, "rb") as file:
            while piece := file.read(_COPY_BYTES):
                train.written.write(piece)
    held_out.path.unlink()
    facts = {PIXELS_FILE: train.written.facts}
    labels = found.labels
    if labels[0] is not None and labels[1] is not None:
        every = np.concatenate([labels[0].numpy(), labels[1].numpy()])
        facts[LABELS_FILE] = _write(folder / LABELS_FILE, every.astype("<i8"))
    text = "".join(f"{name}\0" for names in found.names for name in names)
    facts[NAMES_FILE] = _write(folder / NAMES_FILE, text.encode(errors="surrogateescape"))
    if files_digest(opened) != files:
        raise DataError(f"{source}: changed while it was read; prepare it again")

    sets = [
        sink.digest.result((sink.count, *sink.shape), None if own is None else own.numpy().data)
        for sink, own in zip((train, held_out), labels, strict=True)
    ]
    manifest = Manifest(
        format=FORMAT,
        tarflow=__version__,
        source=source,
        asked=asked,
        files_digest=files,
        shape=train.shape,
        levels=options.levels or opened.levels,
        labelled=labels[0] is not None,
        class_names=found.class_names,
        variant=opened.variant,
        train=train.count,
        held_out=held_out.count,
        train_digest=sets[0],
        held_out_digest=sets[1],
        own_split=layout.own_split,
        preprocessing=PREPROCESSING,
        skipped=found.skipped,
        value_range=opened.value_range,
    )
    storage.write_json(folder / MANIFEST_FILE, to_dict(manifest))
    facts[MANIFEST_FILE] = digests.file_facts(folder / MANIFEST_FILE)
    storage.write_json(folder / digests.DIGESTS_FILE, facts)
    return manifest


def _write(path: Path, values: Any) -> dict[str, Any]:
    """Write the bytes of an array; their `digests.file_facts`."""
    with open(path, "wb") as file:
        digesting = digests.Digesting(file)
        digesting.write(values)
    return digesting.facts
