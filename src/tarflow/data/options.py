"""What may be asked of data: how records are read, and what their images become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tarflow.config import Aspect, DataConfig, PadWith, ValueRange
from tarflow.data.errors import DataError
from tarflow.fields import integer, real
from tarflow.measure import check_levels

TABLE_SUFFIXES = (".csv", ".parquet", ".npz", ".npy")  # of files that may hold a table (`data.tables`)
NO_COLUMN = "none"  # as the name of a column: no such column is read


@dataclass(frozen=True)
class LoadOptions:
    """What images are to become, checked before anything is read.

    Attributes:
        image_size: a side, or (H, W), of the images; None: their own, which must then agree.
        aspect, pad_with: how images of another shape get that size, see `images.fit`.
        crop_from: a size, no smaller, that images get first. `image_size` is cut out of their middle, and training cuts
            it out anywhere (`ImageSet.wide`). None: `image_size` itself.
        channels: 1 or 3. None: 1 if all images are grey, else 3.
        levels: number of values of a pixel, 2 to 256; images are requantised where they have another. None: their own.
        class_names: the classes a model was trained with; labels are mapped by name. None: the data's own.
        held_out_fraction, split_seed: of the split, where the data have none of their own.
        skip_bad: leave out records that cannot be read, and list them in `skipped`, instead of an error.
        progress: called with (images decoded, of how many) every few images.
        image_column, label_column: of Parquet files; "" finds out, and "none" reads no labels.
        conditions_from, conditions: a table with numbers for each image, and the columns of it that are read, with
            commas between them; all that are numbers where none are named (`data.numbers`).
        conditions_needed: whether each image must have a row there. Else a table that has not is left out, as that of
            a run, in which other images are only looked for.
        value_range: of images of more than 8 bits, see docs/data.md.
        strict: whether such a column must be there; a run's columns are only looked for in other data.
        unlabelled: neither labels nor splits are looked for, nor errors in them.
        split_by_name: whether a record is held out, by its name; others are not seen. None sees all, split as above.
    """

    image_size: int | tuple[int, int] | None = None
    aspect: Aspect = "crop"
    pad_with: PadWith = "edge"
    crop_from: int | tuple[int, int] | None = None
    channels: int | None = None
    levels: int | None = None
    class_names: tuple[str, ...] | None = None
    held_out_fraction: float = 0.1
    split_seed: int = 0
    skip_bad: bool = False
    progress: Callable[[int, int], None] | None = None
    image_column: str = ""
    label_column: str = ""
    conditions_from: str = ""
    conditions: str = ""
    conditions_needed: bool = True
    value_range: ValueRange = "full"
    strict: bool = True
    unlabelled: bool = False
    split_by_name: Mapping[str, bool] | None = None

    def __post_init__(self) -> None:
        size = self.size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise DataError(f"image_size: expected a positive number or (height, width), got {self.image_size}")
        kept = self.kept_size
        if size is not None and kept is not None and (kept[0] < size[0] or kept[1] < size[1]):
            raise DataError(
                f"crop_from: expected at least the size of the model, {size[0]}x{size[1]}, got {kept[0]}x{kept[1]}"
            )
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        if self.levels is not None:
            check_levels(self.levels)
        object.__setattr__(self, "split_seed", integer("split_seed", self.split_seed))
        real("held_out_fraction", self.held_out_fraction, "a number between 0 and 1", lambda value: 0 < value < 1)

    @classmethod
    def of(cls, data: DataConfig | None, *, own: bool = True, **fields: Any) -> LoadOptions:
        """Those of a run's data, or (not `own`) of other data that are read like them, with these fields changed."""
        if data is not None:
            names = (
                *("held_out_fraction", "split_seed", "image_column", "label_column", "value_range"),
                *("aspect", "pad_with", "crop_from", "conditions_from", "conditions"),
            )
            fields = (
                {name: getattr(data, name) for name in names}
                | {"class_names": data.class_names or None, "skip_bad": own and data.skip_bad, "strict": own}
                | {"conditions_needed": own}
                | fields
            )
        return cls(**fields)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images."""
        return _pair(self.image_size)

    @property
    def kept_size(self) -> tuple[int, int] | None:
        """Height and width that images are decoded to: those of which windows are cut, where any are."""
        return _pair(self.image_size if self.crop_from is None else self.crop_from)

    def replace(self, **changes: Any) -> LoadOptions:
        return dataclasses.replace(self, **changes)


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size
