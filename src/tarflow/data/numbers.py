"""Numbers of images, by which they are conditioned: the columns of a table, joined to images by their names.

A column of the table says which image a row is of, by its path from the folder, with its suffix or without: `file` or
`file_name`, or else the first column of words. Images that are rows of one file (`sky.npz:17`) need no such column: row
k of the table is of image k.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from tarflow.config import names_in
from tarflow.data.errors import DataError
from tarflow.data.names import composed, few
from tarflow.data.sets import ImageSet
from tarflow.data.tables import Table, read_table

FILE_COLUMNS = ("file", "file_name")
_ROW = re.compile(r"(.*)[:\[](\d+)\]?")  # of the names of images that are rows of a file, or items of a data set


class ImageNumbers:
    """Columns of a table as numbers of images.

    Args:
        source: the table. words: names of columns with commas between them, of numbers; none stands for all.

    Attributes:
        names: of the columns.

    Raises:
        FileNotFoundError: no such table.
        DataError: not a table; a column that is not there, holds words, or a number that is missing or infinite; two
            rows of one image.
    """

    def __init__(self, source: str, words: str = "") -> None:
        self.table = table = read_table(source)
        known = [name for name in FILE_COLUMNS if name in table.columns]
        of_words = [name for name in table.columns if not table.numeric(name)]
        self._column = next(iter(known + of_words), None)
        self._named = bool(known)
        chosen = table.named(names_in(words), "--conditions")
        self.names = chosen or tuple(n for n in table.columns if table.numeric(n) and n != self._column)
        if not self.names:
            raise DataError(f"{table.path}: no column of numbers to condition on")
        self.values = torch.from_numpy(table.numbers(self.names, "a condition")).float()
        self._rows: dict[str, int] | None = None

    def of(self, images: Sequence[str]) -> Tensor:
        """(N, K) float32 of images with these names. Raises `DataError` that names the first without a row."""
        rows = None if self._named else _rows_of_a_file(images)
        if rows is None:
            index = self._by_name()
            rows = [_find(index, name) for name in images]
        else:
            rows = [row if row < len(self.table) else -1 for row in rows]
        missing = [name for name, row in zip(images, rows, strict=True) if row < 0]
        if missing:
            where = f"; {self._column!r} begins with {next(iter(self._by_name()))!r}" if self._column else ""
            raise DataError(
                f"{self.table.path}: no row of {len(missing)} of {len(images)} images, the first is {missing[0]}{where}"
            )
        return self.values[torch.tensor(rows, device="cpu", dtype=torch.int64)]

    def joined(self, sets: Sequence[ImageSet]) -> list[ImageSet]:
        """Sets of images with their numbers."""
        parts = self.of([name for images in sets for name in images.names]).split(list(map(len, sets)))
        return [
            dataclasses.replace(images, numbers=part, number_names=self.names)
            for images, part in zip(sets, parts, strict=True)
        ]

    def _by_name(self) -> dict[str, int]:
        """The row of each name in the column of names."""
        if self._rows is None:
            if self._column is None:
                raise DataError(
                    f"{self.table.path}: expected a column `file` with the names of the images; it has "
                    f"{few(list(self.table.columns))}"
                )
            self._rows = {}
            for row, name in enumerate(_file_names(self.table, self._column)):
                if (before := self._rows.setdefault(composed(name), row)) != row:
                    raise DataError(
                        f"{self.table.path}: column {self._column!r}: rows {before} and {row} are both of {name!r}"
                    )
        return self._rows


def _file_names(table: Table, column: str) -> list[str]:
    """A column as names of files; of one that holds whole numbers, as of a catalogue, these are the names."""
    words = table.words(column)
    return [str(int(value)) for value in table.columns[column]] if table.numeric(column) else words


def _find(index: dict[str, int], name: str) -> int:
    """The row of an image by its name, or by that without its suffix; -1 where there is none."""
    name = composed(name)
    return index.get(name, index.get(os.path.splitext(name)[0], -1))


def _rows_of_a_file(images: Sequence[str]) -> list[int] | None:
    """Which rows images with these names are, where all are rows of one file, else None.

    >>> _rows_of_a_file(["a.npz:3", "a.npz:17"]), _rows_of_a_file(["data[2]"])
    ([3, 17], [2])
    >>> _rows_of_a_file(["a.npz:3", "b.npz:3"]), _rows_of_a_file(["a.png"])
    (None, None)
    """
    found = [_ROW.fullmatch(name) for name in images]
    known = [match for match in found if match is not None]
    if len(known) < len(found) or len({match[1] for match in known}) != 1:
        return None
    return [int(match[2]) for match in known]
