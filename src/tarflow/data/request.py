"""What was asked of the data: size, channels, levels, classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tarflow.config import DataConfig
from tarflow.data.errors import DataError
from tarflow.data.value_range import ValueRange
from tarflow.measure import check_levels

NO_COLUMN = "none"  # as the name of a column: no such column is read


@dataclass(frozen=True)
class Reading:
    """How a source's records are read, where it is not one way alone.

    Attributes:
        image_column, label_column: of Parquet files; "" finds out, and "none" reads no labels.
        value_range: of images of more than 8 bits, see `data.value_range`.
        strict: whether such a column must be there; a run's columns are only looked for in other data.
    """

    image_column: str = ""
    label_column: str = ""
    value_range: ValueRange = "full"
    strict: bool = True

    @classmethod
    def of(cls, data: DataConfig, *, strict: bool = True) -> Reading:
        """That of a run's data."""
        return cls(data.image_column, data.label_column, data.value_range, strict)


@dataclass(frozen=True)
class Request:
    """What `load` and its like were asked for, checked before anything is read; the fields are arguments of `load`."""

    image_size: int | tuple[int, int] | None = None
    channels: int | None = None
    levels: int | None = None
    class_names: tuple[str, ...] | None = None
    skip_bad: bool = False
    progress: Callable[[int, int], None] | None = None
    reading: Reading = Reading()
    only: frozenset[str] | None = None  # names of the records that are seen; None sees all

    def __post_init__(self) -> None:
        size = self.size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise DataError(f"image_size: expected a positive number or (height, width), got {self.image_size}")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        if self.levels is not None:
            check_levels(self.levels)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size
