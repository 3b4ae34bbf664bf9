"""Images of more than 8 bits: which of their values become black and white, and a word where most levels stay empty.

    full         0 to 65535, all that 16 bits hold; the default
    LO HI        LO becomes level 0 and HI level 255; what is outside is clipped
    auto         the least and the greatest value of the images
    percentile   the values that one in a thousand of the pixels are below, and above

What "auto" and "percentile" come to is kept with the run, so that other images get the same. Cameras of microscopes and
X-ray detectors write 12 or 14 bits into files of 16: taken as they are, all of them become a few dark levels.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from tarflow.data.errors import DataError, DataWarning

if TYPE_CHECKING:
    from tarflow.data.records import Content, Source

ValueRange: TypeAlias = tuple[float, float] | Literal["full", "auto", "percentile"]
FULL = (0.0, 65535.0)
IMAGES, PIXELS = 1000, 4096  # that "auto" and "percentile" look at, and of each of them, spread over all
PERCENTILES = (0.1, 99.9)
_ROWS = 256  # of an image, computed together
_EMPTY = 4  # times as many values as are used: fewer than a quarter is what 14 bits of 16 are


class Values:
    """How values of more than 8 bits become levels, and which of them were met."""

    def __init__(self, value_range: ValueRange) -> None:
        self.full = isinstance(value_range, str)
        self.low, self.high = FULL if isinstance(value_range, str) else value_range
        self.least, self.greatest = math.inf, -math.inf
        self._lock = threading.Lock()

    def to_levels(self, values: Any) -> Any:
        """`round(255 (v - low)/(high - low))`, clipped, uint8. Raises `DataError` where "full" has no meaning."""
        least, greatest = values.min(), values.max()
        if not (np.isfinite(least) and np.isfinite(greatest)):
            raise DataError("values that are not finite")
        hint = "; --value-range gives one"
        if self.full and np.issubdtype(values.dtype, np.floating):
            raise DataError(f"floating-point pixels, which have no fixed range: expected whole numbers{hint}")
        if self.full and (least < 0 or greatest > FULL[1]):
            raise DataError(f"whole numbers from {least} to {greatest}: expected at most 16 bits{hint}")
        with self._lock:
            self.least, self.greatest = min(self.least, float(least)), max(self.greatest, float(greatest))
        levels = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), _ROWS):  # wider numbers of a few rows, not of all
            rows = values[top : top + _ROWS]
            if self.full:
                levels[top : top + _ROWS] = (rows.astype(np.int32) + 128) // 257  # exact, and white stays white
            else:
                scaled = np.rint((rows.astype(np.float64) - self.low) * (255 / (self.high - self.low)))
                levels[top : top + _ROWS] = scaled.clip(0, 255)
        return levels

    def say(self, where: str) -> None:
        """A `DataWarning` where the values that were met use little of the range, or much is outside of it."""
        if self.least > self.greatest:
            return
        least, greatest = _text(self.least), _text(self.greatest)
        slack = (self.high - self.low) / 10
        if self.full and (self.greatest - self.least) * _EMPTY < FULL[1]:
            first, last = (int(v + 128) // 257 for v in (self.least, self.greatest))
            found = (
                f"values of 16 bits from {least} to {greatest} become levels {first} to {last} of 0 to 255; "
                f"--value-range {least} {greatest}, auto or percentile spreads them"
            )
        elif not self.full and (self.least < self.low - slack or self.greatest > self.high + slack):
            found = (
                f"values from {least} to {greatest}, of which those outside of {_text(self.low)} to "
                f"{_text(self.high)} (--value-range) are clipped"
            )
        else:
            return
        warnings.warn(f"{where}: {found}", DataWarning, stacklevel=3)


def measured(
    where: str, source: Source, kind: Literal["auto", "percentile"], read: Callable[[Content], Any]
) -> ValueRange:
    """What "auto" or "percentile" comes to; "full", with a `DataWarning`, where no image has more than 8 bits.

    Args:
        read: the values of a record; None where it has 8 bits or cannot be read.
    """
    found = []
    for content in source.spread(IMAGES, IMAGES):
        if (values := read(content)) is not None:
            flat = values.reshape(-1)
            ends = [flat.min(), flat.max()] if kind == "auto" else []
            found.append(np.concatenate([flat[:: max(1, flat.size // PIXELS)], np.array(ends, flat.dtype)]))
    if not found:
        warnings.warn(f"{where}: --value-range {kind}: no image has more than 8 bits", DataWarning, stacklevel=3)
        return "full"
    every = np.concatenate([values.astype(np.float64) for values in found])
    low, high = (every.min(), every.max()) if kind == "auto" else np.percentile(every, PERCENTILES)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise DataError(f"{where}: --value-range {kind}: the values are from {_text(low)} to {_text(high)}: no range")
    return float(low), float(high)


def _text(value: float) -> str:
    return f"{value:.0f}" if value == value // 1 else f"{value:.6g}"
