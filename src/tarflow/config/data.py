"""Which images a run sees, and how a file becomes a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from tarflow.config.words import names_in
from tarflow.fields import ConfigError, check, coerce_fields, derived, option

ValueRange: TypeAlias = tuple[float, float] | Literal["full", "auto", "percentile"]
Aspect: TypeAlias = Literal["crop", "pad", "stretch"]
PadWith: TypeAlias = Literal["edge", "white", "black"]


@dataclass(frozen=True)
class DataConfig:
    """Which images are seen, and how a file becomes a tensor. Stored with the run, so that its user need not know."""

    source: str = option(
        "digits",
        name="data",
        help="digits, fashion-mnist, or the path of a folder, of Parquet or IDX files, of a prepared directory",
    )
    levels: int = derived(256, help="number of values a pixel can take")
    class_names: tuple[str, ...] = derived((), help="names of the classes, in the order of the labels")
    conditional: bool = option(True, help="learn p(x|y) where the data have labels")
    flip: bool = option(False, help="mirror half of the training images from left to right")
    aspect: Aspect = option(  # noqa: RUF009 - an alias hides from ruff that it is a string
        "crop",
        help="how images of another shape get that of the model: crop to their middle, pad to all of them, or stretch",
    )
    pad_with: PadWith = option(  # noqa: RUF009
        "edge", help="what --aspect pad puts around an image: its pixels at the edge, repeated; white; black"
    )
    crop_from: int | tuple[int, int] | None = option(
        None,
        help="train on random windows of the images at this size, one number for a square; scores are of their middle",
    )
    crop_padding: int = option(0, help="train on random crops of images that are continued by so many pixels a side")
    held_out_fraction: float = option(0.1, help="share of images held out where the data have no split of their own")
    split_seed: int = option(0, help="seed of that split")
    skip_bad: bool = option(False, help="leave out files that cannot be read, instead of stopping")
    variant: str = option("", help="which of several versions of the data set; what its files tell when not given")
    image_column: str = option("", help="column of Parquet files with the images; found by its name when not given")
    label_column: str = option("", help="that with the labels, or none; found by its name when not given")
    conditions_from: str = option(
        "",
        help="a table with numbers for each image, on which they are conditioned: a .csv, .parquet, .npz or .npy file",
    )
    conditions: str = option(
        "", help="its columns, with commas, that they are conditioned on; all that are numbers when not given"
    )
    value_range: ValueRange = option(  # noqa: RUF009 - an alias hides from ruff that it cannot change
        "full",
        help="of images of more than 8 bits, which values become black and white: two numbers; full, all of 16 bits; "
        "auto, the least and the greatest that there are; percentile, all but one in a thousand at either end",
    )
    place: str = derived("", help="where `source` was when it was trained on, from the root of the file system")
    train_digest: str = derived("", help="of the images that were trained on, their labels and numbers")
    held_out_digest: str = derived("", help="of those that were held out")

    def __post_init__(self) -> None:
        coerce_fields(self)
        check(2 <= self.levels <= 256, "levels", "2 to 256", self.levels)
        sides = (self.crop_from,) if isinstance(self.crop_from, int) else self.crop_from
        check(sides is None or min(sides) >= 1, "crop_from", "positive numbers", self.crop_from)
        check(self.crop_padding >= 0, "crop_padding", "0 or more", self.crop_padding)
        if self.conditions and not self.conditions_from:
            raise ConfigError("conditions: expected --conditions-from besides, a table with these columns, got none")
        check(0 < self.held_out_fraction < 1, "held_out_fraction", "between 0 and 1", self.held_out_fraction)
        values = self.value_range
        check(isinstance(values, str) or values[0] < values[1], "value_range", "a lower number, then a higher", values)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the numbers that a run is conditioned on, in their order."""
        return names_in(self.conditions)
