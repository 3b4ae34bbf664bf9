"""From records to image sets: which record goes to which set, and decode, convert, fit and check each one once."""

from __future__ import annotations

import itertools
import os
import warnings
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tarflow.data.errors import DataError
from tarflow.data.images import Values, convert, decode, fit, from_array, to_array
from tarflow.data.names import class_finder, few
from tarflow.data.options import LoadOptions
from tarflow.data.records import Content, Records, Source, read_rows
from tarflow.data.sets import ImageSet, seeded_split
from tarflow.measure import requantize

MOST_CLASSES = 1 << 20  # a label beyond that is no class, but something else, or damaged
_CHUNK = 16  # records a thread decodes before the next hand-over: small images take less time than that
_WINDOW = 16  # chunks under way, which bounds the encoded bytes in memory
_WINDOW_BYTES = 1 << 28  # of decoded images under way
THREADS = min(4, os.cpu_count() or 1)  # Pillow decodes without the lock; small images gain nothing from more

Item = TypeVar("Item")


@dataclass(frozen=True)
class Layout:
    """Which records of a source go to which set.

    Attributes:
        where: what messages call the source. parts: what is read of it, in this order.
        which: (N,) int8, the number of the set of each record, counted through all parts; -1 is left out.
        own_split: whether the sets are the data's own training and held-out split. count: of the sets.
    """

    where: str
    source: Source
    parts: tuple[Records, ...]
    which: Any
    own_split: bool = False
    count: int = 1

    def rows(self) -> Any:
        """Those records that go to a set."""
        return np.flatnonzero(self.which >= 0)

    def sizes(self) -> list[int]:
        """How many records each set has."""
        return np.bincount(self.which[self.which >= 0], minlength=self.count).tolist()

    @classmethod
    def all_in_one(cls, where: str, source: Source, parts: Sequence[Records] | None = None) -> Layout:
        """One set of all records; or of those of some parts. Raises `DataError` where there are none."""
        parts = source.parts if parts is None else tuple(parts)
        if not (total := sum(map(len, parts))):
            raise DataError(f"{where}: holds no images")
        return cls(where, source, parts, np.zeros(total, np.int8))

    @classmethod
    def train_and_held_out(cls, where: str, source: Source, options: LoadOptions) -> Layout:
        """Set 0 to learn from and set 1 held out: by the data's own split, by the names of a known one, or seeded.

        A seeded split is of the records, whether or not they can be read.
        """
        own, known = source.own_split(), options.split_by_name
        parts = own or source.parts
        for part in parts:
            if not len(part):
                raise DataError(f"{where}: {f'the {part.split} split ' if own else ''}holds no images")
        which = np.repeat(np.arange(len(parts), dtype=np.int8) if own else np.int8(0), list(map(len, parts)))
        if known is not None:
            found = np.array([known.get(name, -1) for part in parts for name in part.names], np.int8)
            which = np.where(found < 0, found, which) if own else found
        elif not own and len(which) > 1:  # of one image it is said last that one is not enough
            which[seeded_split(where, len(which), options.held_out_fraction, options.split_seed)[1].numpy()] = 1
        return cls(where, source, tuple(parts), which, own is not None, 2)


Skipped: TypeAlias = tuple[tuple[str, str], ...]  # (name, reason) of records that cannot be read


def assemble(
    layout: Layout, options: LoadOptions, new_sink: Callable[[int, int, tuple[int, int, int]], Any]
) -> tuple[list[ImageSet], Skipped]:
    """The sets of a layout, all of one image shape, levels and classes: every record is decoded once.

    Args:
        new_sink: makes what takes the images of a set, by its number, how many there may be, and their shape: with
            `add(image)`, (C, H, W) uint8 or grey where C is 3, and `images()`, which gives all of them, (N, C, H, W).

    Raises `DataError`: bad records, unless they may be skipped; images of several sizes without an `image_size`; a set
    of which nothing can be read.
    """
    where, sizes, rows = layout.where, layout.sizes(), layout.rows()
    names = [name for part in layout.parts for name in part.names]
    sinks: list[Any] = [None] * len(sizes)
    kept = [array("q") for _ in sizes]
    bad: dict[int, str] = {}
    first: tuple[str, tuple[int, int, int]] | None = None  # the name and the shape that the others must have
    with warnings.catch_warnings():
        # Large images are errors of `decode`; Pillow's warning would say it twice. Set here, as filters are global.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        images = decoded(layout, options, alike=True)
        for row, image in zip(rows.tolist(), images, strict=True):
            if isinstance(image, DataError):
                bad[row] = str(image)
                continue
            shape = image if isinstance(image, tuple) else image.shape
            if first is None:
                first = names[row], (options.channels or shape[0], *shape[1:])
            if shape[1:] != first[1][1:]:
                one, other = (f"{height}x{width}" for _, height, width in (first[1], shape))
                raise DataError(
                    f"{where}: {first[0]} is {one} and {names[row]} is {other} (height x width): "
                    "give an image size, to which all are scaled and cropped"
                )
            if shape[0] > first[1][0]:  # in colour, after grey ones: from the start, where those become RGB
                return assemble(layout, options.replace(channels=3), new_sink)
            which = int(layout.which[row])
            sink = sinks[which] = sinks[which] or new_sink(which, sizes[which], first[1])
            sink.add(image)
            kept[which].append(row)
    skipped = tuple((names[row], reason) for row, reason in bad.items())
    if bad and not options.skip_bad:
        listed = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        count = f"{len(bad)} of {len(rows)} images cannot be read"
        raise DataError(f"{where}: {count} (skip_bad leaves them out): {listed}{more}")
    for which, size in enumerate(sizes):
        if not kept[which]:
            first_bad = next((f"{names[row]}: {bad[row]}" for row in bad if layout.which[row] == which), "")
            raise DataError(_nothing(layout, which, size, first_bad))
    labels, class_names = label_tensors(layout, kept, options.class_names)
    levels = options.levels or layout.source.levels
    sets = [
        ImageSet(sink.images(), own, tuple(names[row] for row in some), levels, class_names)
        for sink, own, some in zip(sinks, labels, kept, strict=True)
    ]
    return sets, skipped


def _nothing(layout: Layout, which: int, size: int, first_bad: str) -> str:
    """What is said of a set of `size` records without an image that can be read."""
    if size:
        split = f"the {layout.parts[which].split} split: " if layout.own_split else ""
        return f"{layout.where}: {split}none of {size} images can be read; the first is {first_bad}"
    expected = "expected at least 2 images, one to train on and one to hold out"
    return f"{layout.where}: {expected}, got {sum(layout.sizes())}"


def label_tensors(
    layout: Layout, kept: Sequence[Any], class_names: tuple[str, ...] | None
) -> tuple[list[Tensor | None], tuple[str, ...]]:
    """The labels (N,) int64 of each list of `kept` records, and the names of the classes; None and () without.

    A record is counted through all parts. With `class_names` labels are indices into those, by name; where the source
    has no names, a label is its own name. Raises `DataError`: labels in some parts only, labels without a class,
    unknown classes.
    """
    where, source, parts = layout.where, layout.source, layout.parts
    labelled = [part for part in parts if part.labels is not None]
    if not labelled:
        return [None] * len(kept), ()
    if len(labelled) < len(parts):
        without = next(part for part in parts if part.labels is None)
        raise DataError(
            f"{where}: the {labelled[0].split} split has labels and the {without.split} split has none: "
            "expected both to be alike (give the path of one of them to use it alone)"
        )
    # Of all parts, also those not asked for, so that the classes do not depend on the split.
    top = max(max(part.labels or [-1]) for part in source.parts)
    if top >= MOST_CLASSES:
        raise DataError(f"{where}: label {top}: expected the number of a class, counted from 0, below {MOST_CLASSES}")
    names = source.class_names or tuple(str(i) for i in range(top + 1))
    every = np.concatenate([np.asarray(part.labels, np.int64) for part in parts])
    labels = [torch.from_numpy(every[np.asarray(rows, np.int64)]) for rows in kept]
    used = torch.cat(labels).unique()
    if len(used) and int(used[-1]) >= len(names):
        raise DataError(f"{where}: label {int(used[-1])}: expected 0 to {len(names) - 1}, for {len(names)} classes")
    if class_names is None or class_names == names:
        return list(labels), names
    if len(set(class_names)) < len(class_names):
        raise DataError(f"class_names: expected each name once, to map labels by name, got {few(class_names)}")
    find = class_finder(class_names)
    found = [find(name) for name in names]
    for label in used[used >= 0].tolist():
        if found[label] is None:
            raise DataError(f"{where}: unknown class {names[label]!r}: expected one of {few(class_names)}")
    mapping = torch.tensor([-1 if k is None else k for k in found], device="cpu", dtype=torch.int64)
    return [mapping[some] for some in labels], class_names


def decoded(layout: Layout, options: LoadOptions, *, alike: bool = False) -> Generator[Any, None, None]:
    """Each record that goes to a set, in order: pixels (C, H, W) uint8, or the `DataError` that it is.

    With `alike`, an image of another size than the first is given by its shape alone: it ends the reading, and hundreds
    may be under way. `close` ends it, too.
    """
    source, rows = layout.source, layout.rows()
    values, levels = Values(source.value_range), options.levels or source.levels
    first: tuple[int, int] | None = None
    own = torch.from_numpy(np.arange(source.levels).astype(np.uint8))
    requantized = requantize(own, source.levels, levels).numpy()  # of each level

    def read(content: Content) -> Any:
        try:
            image = _pixels(content, source, options, values)
        except DataError as error:
            return error
        if alike and first is not None and image.shape[1:] != first:
            return image.shape
        return image if levels == source.levels else requantized[image]

    contents = read_rows([(len(part), part.read) for part in layout.parts], rows)
    with ThreadPoolExecutor(THREADS) as pool:
        for done, image in enumerate(in_order(pool, read, contents), 1):
            if first is None and isinstance(image, np.ndarray):
                first = image.shape[1:]
            if options.progress is not None and (done % _CHUNK == 0 or done == len(rows)):
                options.progress(done, len(rows))
            yield image
    values.say(layout.where)


def _pixels(content: Content, source: Source, options: LoadOptions, values: Values) -> Any:
    """The pixels (C, H, W) uint8 of one record, of the size that is kept and the channels where they are given."""
    size, channels, levels = options.kept_size, options.channels, source.levels
    rule = options.aspect, options.pad_with
    if isinstance(content, DataError):
        raise content
    if isinstance(content, np.ndarray):
        if channels in (None, len(content)) and size in (None, content.shape[1:]):
            return content
        image = convert(from_array(content), channels)
        image = image if size is None else fit(image, size, *rule)
    else:
        try:
            data = content.read_bytes() if isinstance(content, Path) else content
        except OSError as error:
            raise DataError(error.strerror or str(error)) from None
        image = decode(data, channels, size, values, None, *rule)
    pixels = to_array(image)
    return pixels if levels == 256 else np.minimum(pixels, levels - 1)  # bicubic overshoots, Pillow clips at 255 only


def in_order(pool: ThreadPoolExecutor, read: Callable[[Item], Any], items: Iterable[Item]) -> Iterator[Any]:
    """`read` of every item, in order, in the pool's threads, with a bounded number, and size of arrays, under way."""
    items, count = iter(items), THREADS  # of which is learnt how large they are
    while window := list(itertools.islice(items, count)):
        size = min(_CHUNK, -(-len(window) // THREADS))
        chunks = [window[i : i + size] for i in range(0, len(window), size)]
        largest = 1
        for images in pool.map(lambda chunk: [read(item) for item in chunk], chunks):
            largest = max(largest, *(getattr(image, "nbytes", 1) for image in images))
            yield from images
        del images
        count = max(1, min(_CHUNK * _WINDOW, _WINDOW_BYTES // largest))
