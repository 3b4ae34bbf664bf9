"""The front door of the data room: a source by its name or path becomes tensors of pixels, split in two."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tarflow.data.assemble import Layout, Skipped, assemble, decoded
from tarflow.data.errors import DataError
from tarflow.data.numbers import ImageNumbers
from tarflow.data.options import LoadOptions
from tarflow.data.readers.dataset import open_dataset
from tarflow.data.sets import ImageSet as ImageSet
from tarflow.data.sets import Splits as Splits
from tarflow.data.sets import middle
from tarflow.data.sources import common_shape, open_measured
from tarflow.data.store.read import mapped_sets
from tarflow.data.store.write import open_cached
from tarflow.devices import machine_bytes

MEMORY_SHARE = 0.5  # of the machine's memory that images may take; more are kept in a file, which is mapped


def load(source: str, options: LoadOptions | None = None, **fields: Any) -> Splits:
    """The training and the held-out images of `source`.

    Held out is the data's own validation split, or else its test split; where it has no split, a fraction of the images
    drawn from a seed, at least one. They are in memory; what would take more than half of it, or has to be fetched from
    another machine, is written once to a store in the cache directory (`store.write`), and mapped, with the same
    pixels.

    Args:
        source: `digits`, `fashion-mnist`, `hub:OWNER/NAME`; or the path of a folder of images, of Parquet or of IDX
            files; of a Parquet, IDX or `.npz` file; of one image; or a directory that `tarflow prepare` left, which is
            mapped, and whose split is its own. A known name goes before a path: write `./digits` for the path.
        options, fields: what the images are to become, as one value or field by field.

    Raises:
        FileNotFoundError: no such path, nor a known name.
        DataError (a ValueError): one line that names the file or option, what was expected and what was found.
    """
    options = (options or LoadOptions()).replace(**fields)
    layout = Layout.train_and_held_out(source, open_measured(source, options), options)
    if (shape := _too_large(layout, options)) is not None:
        stored = open_cached(layout, options, shape)
        if stored is not None:
            train, held_out = _joined([stored.train, stored.held_out], options)
            return dataclasses.replace(stored, train=train, held_out=held_out)
    return _splits(layout, options)


load_images = load  # its name where there is no `data` before it: `tarflow.load_images`


def load_held_out(source: str, options: LoadOptions) -> ImageSet:
    """`load(…).held_out`, without decoding what is trained on where the data have a split of their own."""
    opened = open_measured(source, options)
    layout = Layout.train_and_held_out(source, opened, options)
    if layout.own_split and opened.store is None and _too_large(layout, options) is None:
        return _sets(Layout.all_in_one(source, opened, layout.parts[1:]), options)[0][0]
    return load(source, options).held_out


def load_all(source: str, options: LoadOptions | None = None, **fields: Any) -> tuple[ImageSet, Skipped]:
    """Every image of every split of `source` (training, validation, test), and (name, reason) of those skipped.

    Arguments and errors are those of `load`.
    """
    options = (options or LoadOptions()).replace(**fields)
    sets, skipped = _sets(Layout.all_in_one(source, open_measured(source, options)), options)
    return sets[0], skipped


def load_dataset(
    dataset: Any,
    held_out: Any = None,
    *,
    levels: int = 256,
    class_names: Sequence[str] | None = None,
    **fields: Any,
) -> Splits:
    """`load` of data sets of the caller's own, in memory: see `readers.dataset`. `fields` are those of `LoadOptions`.

    Without `held_out` a seeded fraction of `dataset` is held out.
    """
    options = LoadOptions(**fields)
    opened = open_dataset(dataset, held_out, levels, class_names, options.value_range)
    return _splits(Layout.train_and_held_out("data", opened, options), options)


def load_pixels(images: Sequence[Any], options: LoadOptions) -> Tensor:
    """Pictures, arrays or tensors in memory (see `readers.dataset`) as pixels (N, C, H, W) uint8, as `options` say.

    Raises `DataError` naming the image, `images[3]`, that cannot be read, or has another size where none is given.
    """
    opened = open_dataset(images, value_range=options.value_range, where="images")
    return _sets(Layout.all_in_one("images", opened), options)[0][0].images


@dataclass(frozen=True)
class ScannedImage:
    """One image, or why it cannot be read.

    Attributes:
        index: its place in the source, from 0; bad ones count.
        name: path from the folder, `file.parquet:row`, `digits:17`.
        pixels: (C, H, W) uint8, 0 … levels-1; None where `problem` says what is wrong.
    """

    index: int
    name: str
    pixels: Tensor | None
    problem: str | None = None


@dataclass(frozen=True)
class Scan:
    """All images of a source; every iteration goes through them from the start, in the same order."""

    layout: Layout
    options: LoadOptions

    @property
    def total(self) -> int:
        """How many records there are, bad ones too."""
        return len(self.layout.which)

    def __iter__(self) -> Generator[ScannedImage, None, None]:
        """Images in order, a few hundred ahead of what was asked for. `close` ends the reading."""
        names = (name for part in self.layout.parts for name in part.names)
        with contextlib.closing(decoded(self.layout, self.options)) as images:
            for index, (name, found) in enumerate(zip(names, images, strict=True)):
                bad = isinstance(found, DataError)
                pixels = None
                if not bad:
                    pixels = torch.tensor(middle(found, self.options.size), device="cpu", dtype=torch.uint8)
                yield ScannedImage(index, name, pixels, str(found) if bad else None)


def open_scan(source: str, options: LoadOptions | None = None, **fields: Any) -> Scan:
    """Every image of every split of `source`, made to fit a model; labels are not read.

    Everything else is as with `load_all`, except that a bad record is part of the scan and no error, and that
    images of several sizes have to be given one.

    Raises:
        FileNotFoundError: no such path, nor a known name.
        DataError: no images, not a readable file, or options that cannot be honoured.
    """
    options = (options or LoadOptions()).replace(**fields)
    return Scan(Layout.all_in_one(source, open_measured(source, options.replace(unlabelled=True))), options)


class _Array:
    """A sink in memory."""

    def __init__(self, number: int, capacity: int, shape: tuple[int, int, int]) -> None:
        self.count = 0
        try:
            self.array = np.empty((capacity, *shape), np.uint8)
        except MemoryError:
            gigabytes = capacity * math.prod(shape) / 1e9
            raise DataError(
                f"{capacity} images of {shape[1]}x{shape[2]} need {gigabytes:.0f} GB of memory: "
                "give a smaller image size, or fewer images"
            ) from None

    def add(self, image: Any) -> None:
        self.array[self.count] = image  # grey is repeated where the others are RGB
        self.count += 1

    def images(self) -> Tensor:
        return torch.from_numpy(self.array[: self.count])


def _sets(layout: Layout, options: LoadOptions) -> tuple[list[ImageSet], Skipped]:
    """The sets of a layout, as they are in a store, or decoded into memory."""
    if layout.source.store is not None:
        sets, skipped = mapped_sets(layout, options)
    else:
        sets, skipped = assemble(layout, options, _Array)
        sets = [images.windowed(options.size) for images in sets]
    return _joined(sets, options), skipped


def _joined(sets: list[ImageSet], options: LoadOptions) -> list[ImageSet]:
    """Sets with the numbers that the table of the options has of their images; as they are where it names none."""
    if not options.conditions_from:
        return sets
    try:
        return ImageNumbers(options.conditions_from, options.conditions).joined(sets)
    except (DataError, FileNotFoundError):
        if options.conditions_needed:
            raise
        return sets


def _splits(layout: Layout, options: LoadOptions) -> Splits:
    (train, held_out), skipped = _sets(layout, options)
    return Splits(train, held_out, layout.own_split, skipped, layout.source.variant)


def _too_large(layout: Layout, options: LoadOptions) -> tuple[int, int, int] | None:
    """The shape of images that are not to be held in memory; None of those that are, or are in a store already."""
    if layout.source.store is not None:
        return None
    room = 0.0 if layout.source.remote else MEMORY_SHARE * (machine_bytes() or math.inf)
    total, channels = sum(layout.sizes()), options.channels or 3
    if options.kept_size is not None and total * math.prod((channels, *options.kept_size)) <= room:
        return None
    found = common_shape(layout.source)
    if found is None and options.kept_size is None:
        return None  # whoever reads all of it says best what is wrong
    shape = (options.channels or (found[0] if found else 3), *(options.kept_size or found[1:]))  # type: ignore[index]
    return shape if total * math.prod(shape) > room else None
