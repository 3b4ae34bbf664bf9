"""Packing a source once into a prepared directory (`data.prepared`), with memory for a few hundred images.

Images are decoded one after the other and appended to a file; then, when it is known how many can be read, one pass
over that file puts those to learn from before those held out. So the disk must have room for twice the result for a
while. Killed on the way, it leaves a hidden directory that the next try clears away; it starts anew, because decoding
is quick beside training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tarflow import __version__, digests, storage
from tarflow.config import to_dict
from tarflow.data.assemble import Stack, assemble
from tarflow.data.errors import DataError
from tarflow.data.fingerprint import content_digest, files_digest
from tarflow.data.labels import label_tensors
from tarflow.data.prepared import (
    FILES,
    FORMAT,
    LABELS_FILE,
    MANIFEST_FILE,
    NAMES_FILE,
    OFFSETS_FILE,
    PIXELS_FILE,
    Asked,
    Manifest,
    is_prepared,
    open_prepared,
    read_manifest,
    readonly_tensor,
)
from tarflow.data.records import Part, Source
from tarflow.data.request import Request
from tarflow.data.sets import SetDigest
from tarflow.data.sources import open_measured
from tarflow.data.split import check_fraction, own_split, seeded_split
from tarflow.data.value_range import Values
from tarflow.destination import check_vacant
from tarflow.fields import integer
from tarflow.measure import requantize

_COPY_BYTES = 1 << 24  # pixels that are copied at a time
PREPROCESSING = (
    "upright by EXIF orientation; transparency over white; 16 bits rounded to 8; scaled (bicubic, antialiased) until "
    "it covers the size, cropped to its middle; images of that size as they are"
)

Progress = Callable[[str, int, int], None]


class FileStack(Stack):
    """A `Stack` in a file: raw images, one after the other."""

    def __init__(self, path: Path, capacity: int) -> None:
        super().__init__(capacity)
        self.path = path
        self.shape: tuple[int, ...] | None = None
        self.file = open(path, "wb")  # noqa: SIM115 - closed by `done`, or with the process

    @property
    def channels(self) -> int | None:
        return None if self.shape is None else self.shape[0]

    def append(self, position: int, image: Any, channels: int | None) -> None:
        if self.shape is None:
            self.shape = (channels or image.shape[0], *image.shape[1:])
        elif image.shape[0] > self.shape[0]:
            self.to_rgb()
        self.file.write(np.broadcast_to(image, self.shape).tobytes())
        self.kept.append(position)

    def to_rgb(self) -> None:
        if self.shape is None or self.shape[0] != 1:
            return
        grey = self.done()
        self.shape = (3, *self.shape[1:])
        path = self.path.with_suffix(".rgb")
        self.file = open(path, "wb")  # noqa: SIM115
        step = max(1, _COPY_BYTES // grey[0].size) if len(grey) else 1
        for start in range(0, len(grey), step):
            part = grey[start : start + step]
            self.file.write(np.broadcast_to(part, (len(part), *self.shape)).tobytes())
        del grey
        self.path.unlink()
        self.path = path

    def close(self) -> None:
        self.file.close()

    def done(self) -> Any:
        """Close the file, and map it: (kept, C, H, W)."""
        self.close()
        assert self.shape is not None
        if not self.kept:
            return np.empty((0, *self.shape), np.uint8)
        return np.memmap(self.path, np.uint8, "r", shape=(len(self.kept), *self.shape))


def prepare(
    source: str,
    out: str | Path,
    request: Request,
    *,
    held_out_fraction: float = 0.1,
    split_seed: int = 0,
    variant: str = "",
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[Manifest, bool]:
    """Pack `source` into the directory `out`; its manifest, and whether it was there already.

    `out` is up to date where it was prepared from the same files for the same `request`: the same names, sizes and
    times, or else the same contents.

    Args:
        source, held_out_fraction, split_seed: as for `load`. request: its image size, channels, levels, `skip_bad`,
            `reading`.
        variant: a name for this version of the data set, in place of what its files say.
        force: replace what was prepared otherwise.
        progress: called with what is being done and (how many, of how many).

    Raises:
        FileExistsError: `out` is something else, or was prepared from something else and not `force`.
        InUse: another process prepares `out`.
        DataError: as `load`; the source changed while it was read.
    """
    check_fraction(held_out_fraction)
    split_seed = integer("split_seed", split_seed)
    out = Path(out)
    if not out.name:
        raise FileExistsError(f"{out}: expected a directory by its own name, which is made new")
    if is_prepared(source):
        raise DataError(f"{source}: is prepared already; expected the images that it was made of")
    opened, how = open_measured(source, request.reading), request.reading
    asked = Asked(
        *(request.image_size, request.channels, request.levels, held_out_fraction, split_seed, variant),
        *(how.image_column, how.label_column, how.value_range),
    )
    files = files_digest(opened)

    def known() -> Manifest | None:
        """That of what is there and may stay. FileExistsError where `out` may not be replaced."""
        if out.exists() and not is_prepared(str(out)) and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out}: expected a new directory, or one that `tarflow prepare` made")
        if is_prepared(str(out)) and force:
            check_vacant(out, ours=FILES)  # what somebody put beside them would go with them
        if not is_prepared(str(out)) or force:
            return None
        return _still_good(source, opened, out, asked, files, request.skip_bad, progress)

    if (manifest := known()) is not None:  # before the lock, which takes a place where one may write
        return manifest, True
    place = storage.behind_links(out)
    place.parent.mkdir(parents=True, exist_ok=True)
    with storage.exclusive_name(place):
        if (manifest := known()) is not None:  # another may have come and gone in between
            return manifest, True
        storage.remove_leftovers(place.parent, place.name)
        with storage.replacing_directory(place) as folder, contextlib.ExitStack() as closing:

            def new_stack(part: Part) -> FileStack:
                stack = FileStack(folder / f"{part.split}.raw", len(part.names))
                closing.callback(stack.close)
                return stack

            return _write(folder, source, opened, asked, request, files, progress, new_stack), False


def _still_good(
    source: str, opened: Source, out: Path, asked: Asked, files: str, skip_bad: bool, progress: Progress | None
) -> Manifest:
    """The manifest of `out` where it still is what would be written; FileExistsError naming what is not."""
    manifest = read_manifest(out)
    hint = "give another --out, or --force to replace it"
    before, after = to_dict(manifest.asked), to_dict(asked)
    for name, value in before.items():
        if value != after[name]:
            what = f"{name.replace('_', ' ')} {after[name]!r}"
            raise FileExistsError(f"{out}: prepared with {name.replace('_', ' ')} {value!r}, asked for {what}; {hint}")
    changed = files != manifest.files_digest  # perhaps only the times
    if changed and content_digest(opened, _named(progress, "checking")) != manifest.content_digest:
        raise FileExistsError(f"{out}: prepared from {manifest.source}, and {source} is not the same files; {hint}")
    if manifest.skipped and not skip_bad:
        count, (name, reason) = len(manifest.skipped), manifest.skipped[0]
        raise DataError(f"{out}: {count} images were skipped (--skip-bad), the first is {name}: {reason}")
    open_prepared(str(out), Request())  # raises where a file is missing or cut off
    return manifest


def _write(
    folder: Path,
    source: str,
    opened: Source,
    asked: Asked,
    request: Request,
    files: str,
    progress: Progress | None,
    new_stack: Callable[[Part], FileStack],
) -> Manifest:
    own = own_split(opened)
    parts: Sequence[Part] = own or opened.parts
    stacks, skipped = assemble(
        parts,
        source,
        levels=opened.levels,
        image_size=request.size,
        channels=request.channels,
        values=Values(opened.value_range),
        skip_bad=request.skip_bad,
        progress=_named(progress, "reading"),
        new_stack=new_stack,
    )
    arrays = [stack.done() for stack in stacks]
    labels, class_names = label_tensors(source, opened, parts, [stack.kept for stack in stacks], request.class_names)
    ends = np.cumsum([0, *map(len, arrays)])
    if own:
        order = [np.arange(ends[0], ends[1]), np.arange(ends[1], ends[2])]
    else:
        train, held_out = seeded_split(source, int(ends[-1]), asked.held_out_fraction, asked.split_seed)
        order = [train.numpy(), held_out.numpy()]
    names = [(part.names, stack.kept) for part, stack in zip(parts, stacks, strict=True)]
    levels = request.levels or opened.levels
    shape = tuple(int(n) for n in arrays[0].shape[1:])

    step, done, total = max(1, _COPY_BYTES // int(np.prod(shape))), 0, int(ends[-1])
    sets = [SetDigest((len(rows), *shape)) for rows in order]
    offsets = [0]
    with open(folder / PIXELS_FILE, "wb") as pixels_file, open(folder / NAMES_FILE, "wb") as names_file:
        pixels, text = digests.Digesting(pixels_file), digests.Digesting(names_file)
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(pixels, header | {"shape": (total, *shape)})
        for rows, digest in zip(order, sets, strict=True):
            for start in range(0, len(rows), step):
                chunk = rows[start : start + step]
                found = _gather(arrays, ends, chunk)
                if levels != opened.levels:
                    found = requantize(readonly_tensor(found), opened.levels, levels).numpy()
                pixels.write(found)
                digest.update(found)
                for row in chunk:
                    which = int(np.searchsorted(ends, row, "right")) - 1
                    every, kept = names[which]
                    data = every[kept[int(row - ends[which])]].encode(errors="surrogateescape")
                    offsets.append(offsets[-1] + len(data))
                    text.write(data)
                done += len(chunk)
                if progress is not None:
                    progress("writing", done, total)
    facts = {PIXELS_FILE: pixels.facts, NAMES_FILE: text.facts}
    facts[OFFSETS_FILE] = _save(folder / OFFSETS_FILE, np.array(offsets, np.uint64))
    set_digests = [digest.result(None) for digest in sets]
    if labels[0] is not None:
        every_label = np.concatenate([label.numpy() for label in labels if label is not None])
        own_labels = [every_label[rows] for rows in order]
        facts[LABELS_FILE] = _save(folder / LABELS_FILE, np.concatenate(own_labels))
        set_digests = [digest.result(numbers) for digest, numbers in zip(sets, own_labels, strict=True)]
    del arrays
    for stack in stacks:
        stack.path.unlink()
    if files_digest(opened) != files:
        raise DataError(f"{source}: changed while it was read; prepare it again")

    manifest = Manifest(
        format=FORMAT,
        tarflow=__version__,
        source=source,
        asked=asked,
        files_digest=files,
        content_digest=content_digest(opened, _named(progress, "checking")),
        shape=(shape[0], shape[1], shape[2]),
        levels=levels,
        labelled=labels[0] is not None,
        class_names=class_names,
        variant=asked.variant or opened.variant,
        train=len(order[0]),
        held_out=len(order[1]),
        train_digest=set_digests[0],
        held_out_digest=set_digests[1],
        own_split=own is not None,
        preprocessing=PREPROCESSING,
        skipped=tuple(skipped),
        value_range=opened.value_range,
    )
    storage.write_json(folder / MANIFEST_FILE, to_dict(manifest))
    facts[MANIFEST_FILE] = digests.file_facts(folder / MANIFEST_FILE)
    storage.write_json(folder / digests.DIGESTS_FILE, facts)
    return manifest


def _gather(arrays: Sequence[Any], ends: Any, rows: Any) -> Any:
    """The images `rows`, sorted, of the arrays as if they were one."""
    pieces = []
    for array, start, end in zip(arrays, ends[:-1], ends[1:], strict=True):
        inside = rows[(rows >= start) & (rows < end)]
        if len(inside):
            pieces.append(array[inside - start])
    return np.concatenate(pieces)


def _save(path: Path, array: Any) -> dict[str, Any]:
    """`np.save`, and what `digests.file_facts` says of it."""
    with open(path, "wb") as file:
        digesting = digests.Digesting(file)
        np.save(digesting, array)
    return digesting.facts


def _named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)
