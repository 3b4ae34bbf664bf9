"""Images one after the other, decoded as they are asked for: a source of any length in little memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tarflow.data.assemble import THREADS, in_order, read_one
from tarflow.data.errors import DataError
from tarflow.data.folder import Others, image_paths
from tarflow.data.records import Content
from tarflow.data.request import NO_COLUMN, Reading
from tarflow.data.sources import is_folder_of_images, open_source
from tarflow.data.value_range import Values
from tarflow.measure import check_levels, requantize


@dataclass(frozen=True)
class Record:
    """One image of a stream, or why it cannot be read.

    Attributes:
        index: its place in the stream, from 0; bad ones count.
        name: path from the folder, `file.parquet:row`, `digits:17`.
        pixels: (C, H, W) uint8, 0 … levels-1; None where `problem` says what is wrong.
    """

    index: int
    name: str
    pixels: Tensor | None
    problem: str | None = None


@dataclass(frozen=True)
class Stream:
    """A source of `total` records; every iteration goes through all of them from the start, in the same order."""

    source: str
    total: int
    records: Callable[[], Iterator[tuple[str, Content]]]
    image_size: tuple[int, int]
    channels: int
    own_levels: int
    levels: int
    values: Values

    def __iter__(self) -> Generator[Record, None, None]:
        """Records in order, a few hundred ahead of what was asked for. `close` ends the reading."""
        with ThreadPoolExecutor(THREADS) as pool:
            for index, (name, read) in enumerate(in_order(pool, self._read, self.records())):
                if isinstance(read, DataError):
                    yield Record(index, name, None, str(read))
                else:
                    yield Record(index, name, read)
        self.values.say(self.source)

    def _read(self, record: tuple[str, Content]) -> tuple[str, Tensor | DataError]:
        name, content = record
        try:
            found = read_one(content, self.own_levels, self.image_size, self.channels, self.values)
            pixels = torch.tensor(found, device="cpu", dtype=torch.uint8)
        except DataError as error:
            return name, error
        return name, pixels if self.levels == self.own_levels else requantize(pixels, self.own_levels, self.levels)


def open_stream(
    source: str, *, image_size: tuple[int, int], channels: int, levels: int, reading: Reading | None = None
) -> Stream:
    """Every image of every split of `source`, made to fit a model; labels are not read.

    A folder of images is walked twice, to count and to read, and a thousand names or a million make no other difference
    than the names of its largest folder. Its order is that of the sorted paths. Parquet is read row group by row group.
    `.npz` and IDX files are one array each, which is in memory. Everything else is as with `load.load_all`, except that
    a bad record is part of the stream and no error.

    Args:
        source, reading: as for `load`. image_size: (H, W). channels: 1 or 3. levels: 2 to 256.

    Raises:
        FileNotFoundError: no such path, nor a known name.
        DataError: no images, not a readable file, or options that cannot be honoured.
    """
    if channels not in (1, 3):
        raise DataError(f"channels: expected 1 (grey) or 3 (RGB), got {channels}")
    check_levels(levels)
    reading = reading or Reading()
    values = Values(reading.value_range)
    if is_folder_of_images(source):
        root = Path(source).expanduser()
        others = Others()
        total = sum(1 for _ in image_paths(root, others))

        def files() -> Iterator[tuple[str, Content]]:
            return ((str(path), root / path) for path in image_paths(root))

        if total == 0:
            open_source(source)  # raises the error that names what else is there
        others.say(root)
        return Stream(source, total, files, image_size, channels, 256, levels, values)

    opened = open_source(source, dataclasses.replace(reading, label_column=NO_COLUMN))
    total = sum(len(part.names) for part in opened.parts)
    if total == 0:
        raise DataError(f"{source}: holds no images")

    def rows() -> Iterator[tuple[str, Content]]:
        return (row for part in opened.parts for row in zip(part.names, part.contents(), strict=True))

    return Stream(source, total, rows, image_size, channels, opened.levels, levels, values)
