"""From records to one array a part: decode, convert, fit, check that sizes agree, and leave out what is bad."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tarflow.data.errors import DataError
from tarflow.data.images import convert, decode, fit, from_array, to_array
from tarflow.data.records import Content, Part
from tarflow.data.value_range import Values

_CHUNK = 16  # records a thread decodes before the next hand-over: small images take less time than that
_WINDOW = 16  # chunks under way, which bounds the encoded bytes in memory
_WINDOW_BYTES = 1 << 28  # of decoded images under way
THREADS = min(4, os.cpu_count() or 1)  # Pillow decodes without the lock; small images gain nothing from more

Item = TypeVar("Item")


@dataclass
class Stack:
    """The images of a part, written one after the other into one array (capacity, C, H, W) that is allocated once."""

    capacity: int
    images: Any = None
    kept: list[int] = field(default_factory=list)  # the positions of the records that are in it

    @property
    def channels(self) -> int | None:
        """Of the images so far; None before the first."""
        return None if self.images is None else self.images.shape[1]

    def append(self, position: int, image: Any, channels: int | None) -> None:
        """Write `image` (C, H, W), that of record `position`, behind the others."""
        if self.images is None:
            self._allocate(channels or image.shape[0], *image.shape[1:])
        elif image.shape[0] > self.images.shape[1]:  # the first one in colour, after grey ones
            self.to_rgb()
        self.images[len(self.kept)] = image  # grey is repeated where the others are RGB
        self.kept.append(position)

    def to_rgb(self) -> None:
        """Repeat the only channel, where there is only one."""
        if self.images is not None and self.images.shape[1] == 1:
            grey = self.images[: len(self.kept)]
            self._allocate(3, *grey.shape[2:])
            self.images[: len(self.kept)] = grey

    def _allocate(self, *shape: int) -> None:
        try:
            self.images = np.empty((self.capacity, *shape), np.uint8)
        except MemoryError:
            gigabytes = self.capacity * int(np.prod(shape)) / 1e9
            raise DataError(
                f"{self.capacity} images of {shape[1]}x{shape[2]} need {gigabytes:.0f} GB of memory: "
                "give a smaller image size, or fewer images"
            ) from None


AnyStack = TypeVar("AnyStack", bound=Stack)


def assemble(
    parts: Sequence[Part],
    where: str,
    *,
    levels: int,
    image_size: tuple[int, int] | None,
    channels: int | None,
    values: Values,
    skip_bad: bool,
    progress: Callable[[int, int], None] | None,
    new_stack: Callable[[Part], AnyStack],
) -> tuple[list[AnyStack], list[tuple[str, str]]]:
    """Decode every record of `parts` once: a stack a part, all with the same (C, H, W), and (name, reason) of the bad.

    Raises `DataError` that begins with `where`: bad records, unless `skip_bad`; images of several sizes without an
    `image_size`; a part of which nothing can be read.
    """
    total, done = sum(len(part.names) for part in parts), 0
    stacks = [new_stack(part) for part in parts]
    bad: list[tuple[str, str]] = []
    first: tuple[str, tuple[int, ...]] | None = None  # the name and the size that the others must have

    def read(content: Content) -> Any:
        try:
            image = read_one(content, levels, image_size, channels, values)
        except DataError as error:
            return error
        return image if first is None or image.shape[1:] == first[1] else image.shape  # which is all that is said of it

    with ThreadPoolExecutor(THREADS) as pool, warnings.catch_warnings():
        # Large images are errors of `decode`; Pillow's warning would say it twice. Set here, as filters are global.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        for part, stack in zip(parts, stacks, strict=True):
            for position, image in enumerate(in_order(pool, read, part.contents())):
                name = part.names[position]
                if isinstance(image, DataError):
                    bad.append((name, str(image)))
                else:
                    shape = image if isinstance(image, tuple) else image.shape
                    first = first or (name, shape[1:])
                    if shape[1:] != first[1]:
                        raise DataError(_two_sizes(where, *first, name, shape[1:]))
                    stack.append(position, image, channels)
                done += 1
                if progress is not None and (done % _CHUNK == 0 or done == total):
                    progress(done, total)
    values.say(where)
    if bad and not skip_bad:
        raise DataError(_bad_records(where, bad, total))
    for part, stack in zip(parts, stacks, strict=True):
        if not stack.kept:
            split = "" if part.split == "all" else f"the {part.split} split: "
            if not part.names:
                raise DataError(f"{where}: {split}holds no images")
            first_bad = f"{part.names[0]}: {dict(bad)[part.names[0]]}"
            raise DataError(f"{where}: {split}none of {len(part.names)} images can be read; the first is {first_bad}")
    if any(stack.channels == 3 for stack in stacks):
        for stack in stacks:
            stack.to_rgb()
    return stacks, bad


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


def _two_sizes(where: str, name: str, size: tuple[int, ...], other: str, other_size: tuple[int, ...]) -> str:
    sizes = [f"{height}x{width}" for height, width in (size, other_size)]
    return (
        f"{where}: {name} is {sizes[0]} and {other} is {sizes[1]} (height x width): "
        "give an image size, to which all are scaled and cropped"
    )


def _bad_records(where: str, bad: Sequence[tuple[str, str]], total: int) -> str:
    few = "; ".join(f"{name}: {reason}" for name, reason in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"{where}: {len(bad)} of {total} images cannot be read (skip_bad leaves them out): {few}{more}"
