"""Each image of a source once, in order, decoded as it is asked for: a source of any length in little memory."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.data.assemble import THREADS, in_order, read_one, requantizing_table
from tarflow.data.errors import DataError
from tarflow.data.options import LoadOptions
from tarflow.data.records import Content, Source
from tarflow.data.sources import open_source
from tarflow.data.value_range import Values


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

    source: str
    opened: Source
    options: LoadOptions

    @property
    def total(self) -> int:
        """How many records there are, bad ones too."""
        return sum(map(len, self.opened.parts))

    def __iter__(self) -> Generator[ScannedImage, None, None]:
        """Images in order, a few hundred ahead of what was asked for. `close` ends the reading."""
        options, own_levels = self.options, self.opened.levels
        values, levels = Values(options.value_range), requantizing_table(own_levels, options.levels)

        def read(content: Content) -> Tensor | DataError:
            try:
                pixels = read_one(content, own_levels, options.size, options.channels, values)
            except DataError as error:
                return error
            return torch.tensor(pixels if levels is None else levels[pixels], device="cpu", dtype=torch.uint8)

        names = (name for part in self.opened.parts for name in part.names)
        contents = (content for part in self.opened.parts for content in part)
        with ThreadPoolExecutor(THREADS) as pool:
            for index, (name, found) in enumerate(zip(names, in_order(pool, read, contents), strict=True)):
                bad = isinstance(found, DataError)
                yield ScannedImage(index, name, None if bad else found, str(found) if bad else None)
        values.say(self.source)


def open_scan(source: str, options: LoadOptions | None = None, **fields: Any) -> Scan:
    """Every image of every split of `source`, made to fit a model; labels are not read.

    Everything else is as with `load.load_all`, except that a bad record is part of the scan and no error, and that
    images of several sizes have to be given one.

    Raises:
        FileNotFoundError: no such path, nor a known name.
        DataError: no images, not a readable file, or options that cannot be honoured.
    """
    options = (options or LoadOptions()).replace(**fields)
    scan = Scan(source, open_source(source, options.replace(unlabelled=True)), options)
    if scan.total == 0:
        raise DataError(f"{source}: holds no images")
    return scan
