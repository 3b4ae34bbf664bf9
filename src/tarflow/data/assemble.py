"""From records to image sets: which record goes to which set, and decode, convert, fit and check each one once."""

from __future__ import annotations

import itertools
import os
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tarflow.data.errors import DataError
from tarflow.data.images import Values, convert, decode, fit, from_array, to_array
from tarflow.data.labels import label_tensors
from tarflow.data.options import LoadOptions
from tarflow.data.records import Content, Records, Source
from tarflow.data.sets import seeded_split
from tarflow.measure import requantize

_CHUNK = 16  # records a thread decodes before the next hand-over: small images take less time than that
_WINDOW = 16  # chunks under way, which bounds the encoded bytes in memory
_WINDOW_BYTES = 1 << 28  # of decoded images under way
THREADS = min(4, os.cpu_count() or 1)  # Pillow decodes without the lock; small images gain nothing from more

Item = TypeVar("Item")


@dataclass(frozen=True)
class Layout:
    """Which records go to which set.

    Attributes:
        parts: what is read, in this order. sets: for each part the number of the set of each record; -1 is left out.
        own_split: whether the sets are the data's own training and held-out split. count: of the sets.
    """

    parts: tuple[Records, ...]
    sets: tuple[Any, ...]
    own_split: bool = False
    count: int = 1

    def sizes(self) -> list[int]:
        """How many records each set has."""
        every = np.concatenate(self.sets)
        return np.bincount(every[every >= 0], minlength=self.count).tolist()

    @classmethod
    def all_in_one(cls, parts: Sequence[Records]) -> Layout:
        """One set of all records."""
        return cls(tuple(parts), tuple(np.zeros(len(part), np.int8) for part in parts))

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
        if own:
            sets = [np.full(len(part), number, np.int8) for number, part in enumerate(parts)]
        else:
            total = sum(map(len, parts))
            every = np.zeros(total, np.int8)
            if known is None and total > 1:  # of one image it is said last that one is not enough
                every[seeded_split(where, total, options.held_out_fraction, options.split_seed)[1].numpy()] = 1
            sets = np.split(every, np.cumsum([len(part) for part in parts])[:-1])
        if known is not None:
            for part, numbers in zip(parts, sets, strict=True):
                for row, name in enumerate(part.names):
                    held_out = known.get(name)
                    numbers[row] = -1 if held_out is None else numbers[row] if own else int(held_out)
        return cls(tuple(parts), tuple(sets), own is not None, 2)


@dataclass
class Assembled:
    """The sets, each as the sink that its images went to, its labels (N,) int64 or None, and its names."""

    sinks: list[Any]
    labels: list[Tensor | None]
    names: list[tuple[str, ...]]
    class_names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def assemble(
    where: str,
    source: Source,
    layout: Layout,
    options: LoadOptions,
    new_sink: Callable[[int, int, tuple[int, int, int]], Any],
) -> Assembled:
    """Decode every record of the layout once, all to one (C, H, W).

    Args:
        new_sink: makes what takes the images of a set, by its number, how many there may be, and their shape. It is
            called with one after the other, (C, H, W), or grey where C is 3.

    Raises `DataError` that begins with `where`: bad records, unless they may be skipped; images of several sizes
    without an `image_size`; a set of which nothing can be read.
    """
    sizes, values, size = layout.sizes(), Values(source.value_range), options.size
    total, done, channels = sum(sizes), 0, options.channels
    sinks: list[Any] = [None] * len(sizes)
    kept = [array("q") for _ in sizes]
    bad: list[tuple[str, str]] = []
    first: tuple[str, tuple[int, int, int]] | None = None  # the name and the shape that the others must have
    levels = requantizing_table(source.levels, options.levels)

    def read(content: Content) -> Any:
        try:
            image = read_one(content, source.levels, size, channels, values)
        except DataError as error:
            return error
        unlike = first is not None and image.shape[1:] != first[1][1:]
        return image.shape if unlike else image  # which is all that is said of it

    with ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
        # Large images are errors of `decode`; Pillow's warning would say it twice. Set here, as filters are global.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        start = 0
        for part, numbers in zip(layout.parts, layout.sets, strict=True):
            chosen = np.flatnonzero(numbers >= 0).tolist()
            for row, image in zip(chosen, in_order(pool, read, part.read(chosen)), strict=True):
                done += 1
                if options.progress is not None and (done % _CHUNK == 0 or done == total):
                    options.progress(done, total)
                if isinstance(image, DataError):
                    bad.append((part.names[row], str(image)))
                    continue
                if first is None:
                    first = part.names[row], (channels or image.shape[0], *image.shape[1:])
                shape = image if isinstance(image, tuple) else image.shape
                if shape[1:] != first[1][1:]:
                    one, other = (f"{height}x{width}" for _, height, width in (first[1], shape))
                    raise DataError(
                        f"{where}: {first[0]} is {one} and {part.names[row]} is {other} (height x width): "
                        "give an image size, to which all are scaled and cropped"
                    )
                if len(image) > first[1][0]:  # in colour, after grey ones: from the start, where those become RGB
                    return assemble(where, source, layout, options.replace(channels=3), new_sink)
                which = int(numbers[row])
                if sinks[which] is None:
                    sinks[which] = new_sink(which, sizes[which], first[1])
                sinks[which](image if levels is None else levels[image])
                kept[which].append(start + row)
            start += len(part)
    values.say(where)
    if bad and not options.skip_bad:
        raise DataError(_bad_records(where, bad, total))
    for which, rows in enumerate(kept):
        if not rows:
            raise DataError(_nothing(where, layout, which, bad))
    labels, class_names = label_tensors(where, source, layout.parts, kept, options.class_names)
    every = [name for part in layout.parts for name in part.names]
    names = [tuple(every[row] for row in rows) for rows in kept]
    return Assembled(sinks, labels, names, class_names, tuple(bad))


def requantizing_table(levels: int, new_levels: int | None) -> Any:
    """The new level of each level, uint8; None where they stay."""
    if new_levels in (None, levels):
        return None
    return requantize(
        torch.arange(levels, dtype=torch.int64, device="cpu").to(torch.uint8), levels, new_levels or levels
    ).numpy()


def read_one(
    content: Content,
    levels: int,
    image_size: tuple[int, int] | None,
    channels: int | None,
    values: Values | None = None,
) -> Any:
    """The pixels (C, H, W) uint8 of one record, of the wanted size and channels where they are given."""
    if isinstance(content, DataError):
        raise content
    if isinstance(content, np.ndarray):
        if channels in (None, len(content)) and image_size in (None, content.shape[1:]):
            return content
        image = convert(from_array(content), channels)
    else:
        image = decode(_read_file(content) if isinstance(content, Path) else content, channels, image_size, values)
    pixels = to_array(image if image_size is None else fit(image, image_size))
    return pixels if levels == 256 else np.minimum(pixels, levels - 1)  # bicubic overshoots, Pillow clips at 255 only


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error)) from None


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


def _bad_records(where: str, bad: Sequence[tuple[str, str]], total: int) -> str:
    few = "; ".join(f"{name}: {reason}" for name, reason in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{where}: {len(bad)} of {total} images cannot be read (skip_bad leaves them out): {few}{more}"


def _nothing(where: str, layout: Layout, which: int, bad: Sequence[tuple[str, str]]) -> str:
    """What is said of a set without an image that can be read."""
    if not layout.sizes()[which]:
        total = sum(layout.sizes())
        expected = "expected at least 2 images, one to train on and one to hold out, got"
        return f"{where}: {expected} {total}" if total else f"{where}: holds no images"
    split = f"the {layout.parts[which].split} split: " if layout.own_split else ""
    total = layout.sizes()[which]
    name, reason = next(entry for entry in bad if not layout.own_split or entry[0] in layout.parts[which].names)
    return f"{where}: {split}none of {total} images can be read; the first is {name}: {reason}"
