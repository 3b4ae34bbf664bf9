"""One image: from the bytes of a file to grey or RGB pixels of the wanted size.

Whatever a file holds becomes 8-bit grey (mode L) or RGB:

- 16-bit grey is divided by 257 and rounded, so that white stays white (Pillow's `convert` saturates instead), or
  spread over a range of values that was asked for (`Values`);
- transparency is laid over white, the paper that drawings and logos on a transparent ground are made for (black ink
  over black would vanish);
- RGB to grey is luma (ITU-R 601-2), grey to RGB repeats the value;
- EXIF orientation is applied; of several frames the first is taken; colour profiles are not.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tarflow.config import Aspect, PadWith, ValueRange
from tarflow.data.errors import DataError, DataWarning

# The formats tried, by content and not by suffix. A list, because Pillow knows others that run programs (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")
SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".tif", ".tiff", ".avif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
_ORIENTATION = 0x0112  # the EXIF tag
LARGE = 1 << 22  # pixels from which on images are decoded one after the other: each takes a dozen bytes a pixel
MOST_SIDE = 1 << 20  # Pillow takes eight bytes a row besides, at each step of what is done here
_ONE_LARGE = threading.Lock()
_ROWS = 256  # of an image, looked at together
FULL = (0.0, 65535.0)
_EMPTY = 4  # times as many values as are used: fewer than a quarter is what 14 bits of 16 are
T = TypeVar("T")
_TOO_LARGE = "{} pixels: expected at most Pillow's limit of {} (Image.MAX_IMAGE_PIXELS)"


def decode(
    data: bytes,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    values: Values | None = None,
    most: int | None = None,
    aspect: Aspect = "crop",
    pad_with: PadWith = "edge",
) -> Image.Image:
    """The image in `data`, the contents of a file, as mode L (channels 1) or RGB (channels 3); made to `fit` a size.

    `values` says how more than 8 bits become levels; None takes all 16. Without `channels`, grey stays grey; a palette
    of greys is grey, an RGB image that happens to look grey is RGB. `most` pixels are decoded; None is Pillow's limit.
    Raises `DataError` with the reason alone, for the caller knows the file's name: empty, not an image, truncated,
    a size beyond Pillow's limit (`Image.MAX_IMAGE_PIXELS`; Pillow itself only warns up to twice that), no fixed range.
    """
    if not data:
        raise DataError("empty file")
    try:
        with (
            Image.open(io.BytesIO(data), formats=_formats()) as opened,
            _ONE_LARGE if _check_size(opened, most) > LARGE else contextlib.nullcontext(),
        ):
            opened.load()  # everything is read here: nothing below can meet a truncated file
            found = convert(plain(opened, values), channels)
            return found if size is None else fit(found, size, aspect, pad_with)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("not an image, or in a format that is not read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # a warning where warnings are errors
        raise DataError(_TOO_LARGE.format("too many", Image.MAX_IMAGE_PIXELS)) from None
    except Exception as error:  # on damaged bytes Pillow's readers raise whatever their parsers meet
        detail = str(error) or type(error).__name__
        raise DataError(f"damaged or truncated: {' '.join(detail.split())}") from None


def plain(image: Image.Image, values: Values | None = None) -> Image.Image:
    """Any picture of Pillow's, upright, as mode L or RGB; `values` as of `decode`. Raises `DataError` as that does."""
    upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    return _flatten(upright, values or Values("full"))


def head_of(data: bytes | Path) -> tuple[int, int, int] | None:
    """(C, H, W) of the image in a file or its contents, upright, from its head alone; None where it cannot be read."""

    def shape(image: Image.Image) -> tuple[int, int, int]:
        grey = image.mode in ("1", "L", "LA", "La", "P", "PA") or has_more_bits(image.mode)
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        return (1 if grey else 3, *(image.size if turned else image.size[::-1]))

    return _peek(data, shape)


def raw_values(data: Any) -> Any:
    """The values (H, W) of a record of more than 8 bits; None of another, or of what cannot be read."""
    return _peek(data, lambda image: np.asarray(image) if _check_size(image) and has_more_bits(image.mode) else None)


def _peek(data: Any, look: Callable[[Image.Image], T]) -> T | None:
    """What is seen of an image that is not decoded yet; None of what is none: whoever reads it says what is wrong."""
    try:
        file = io.BytesIO(data) if isinstance(data, bytes) else data
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=_formats()) as opened:
            return look(opened)
    except Exception:
        return None


def convert(image: Image.Image, channels: int | None) -> Image.Image:
    """A grey or RGB image as grey (channels 1) or RGB (channels 3), or as it is (None)."""
    mode = {None: image.mode, 1: "L", 3: "RGB"}[channels]
    return image if image.mode == mode else image.convert(mode)


def fit(image: Image.Image, size: tuple[int, int], aspect: Aspect = "crop", pad_with: PadWith = "edge") -> Image.Image:
    """`image` at `size` (H, W), by one of three rules:

    - crop: scaled until it just covers the size, and cropped to its middle;
    - pad: scaled until it just fits in, and put into the middle of what `pad_with` says: its pixels at the edge,
      repeated outwards, or white or black;
    - stretch: scaled in both directions, so that nothing is lost but its shape.

    The filter is bicubic, widened when it shrinks (antialiased), and scaling and cropping are one resampling. Where
    there is nothing to scale pixels are copied, so that lossless data stay what they are.
    """
    height, width = size
    if (image.height, image.width) == size:
        return image
    if aspect == "stretch":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    if aspect == "pad":
        return _pad(image, size, pad_with)
    scale = max(height / image.height, width / image.width)
    if scale == 1:  # whole pixels, also where the middle lies between two
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))
    cover_width, cover_height = min(width / scale, image.width), min(height / scale, image.height)
    x, y = (image.width - cover_width) / 2, (image.height - cover_height) / 2
    box = (x, y, x + cover_width, y + cover_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def _pad(image: Image.Image, size: tuple[int, int], pad_with: PadWith) -> Image.Image:
    """All of `image`, scaled to fit into `size` (H, W), with something around it."""
    height, width = size
    scale = min(height / image.height, width / image.width)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    scaled = image if inner == image.size else image.resize(inner, Image.Resampling.BICUBIC)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    if pad_with == "edge":
        around = [(top, height - inner[1] - top), (left, width - inner[0] - left)]
        pixels = np.asarray(scaled)
        return Image.fromarray(np.pad(pixels, [*around, (0, 0)][: pixels.ndim], mode="edge"))
    ground = Image.new(image.mode, (width, height), pad_with)
    ground.paste(scaled, (left, top))
    return ground


def to_array(image: Image.Image) -> Any:
    """The pixels of a grey or RGB image: (C, H, W) uint8."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def from_array(pixels: Any) -> Image.Image:
    """The image of (C, H, W) uint8, C 1 or 3: the inverse of `to_array`."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _flatten(image: Image.Image, values: Values) -> Image.Image:
    """Any image as mode L or RGB."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if has_more_bits(mode):
        many = np.asarray(image)
        grey = values.to_levels(many)
        if isinstance(key := image.info.get("transparency"), int):  # one value is transparent
            grey[many == key] = 255
        return Image.fromarray(grey)
    if "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        flat = _over_white(image, grey=mode in ("1", "L", "LA", "La"))
    else:
        flat = image.convert("L" if mode == "1" else "RGB")
    rows = (flat.crop((0, top, flat.width, min(top + _ROWS, flat.height))) for top in range(0, flat.height, _ROWS))
    if mode in ("P", "PA") and all(bool((np.asarray(some)[..., :1] == np.asarray(some)).all()) for some in rows):
        return flat.convert("L")  # exact: the weights of the luma add up to one
    return flat


def _over_white(image: Image.Image, *, grey: bool) -> Image.Image:
    """A transparent image on white, some rows at a time: what is computed on the way is larger than the image."""
    flat = Image.new("L" if grey else "RGB", image.size, "white")
    rows = max(1, LARGE // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        layer = image.crop(box).convert("LA" if grey else "RGBA")
        flat.paste(layer.convert(flat.mode), box, mask=layer.getchannel("A"))
    return flat


def has_more_bits(mode: str) -> bool:
    """Whether images of this mode have values of more than 8 bits: I, I;16, I;16B, F."""
    return mode.startswith("I") or mode == "F"


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.preinit()
    if any(name not in Image.OPEN for name in _FORMATS):
        Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)  # a build of Pillow may lack some


def _check_size(image: Image.Image, most: int | None = None) -> int:
    """How many pixels an image that is not loaded yet has. Raises DataError where they are too many."""
    width, height = image.size
    if most is not None and width * height > most:
        raise DataError(f"{height}x{width} pixels: expected at most {most:,}")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise DataError(_TOO_LARGE.format(f"{height}x{width}", Image.MAX_IMAGE_PIXELS))
    if max(width, height) > MOST_SIDE:
        raise DataError(f"{height}x{width} pixels: expected at most {MOST_SIDE} a side")
    return width * height


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
            scaled = (values[top : top + _ROWS].astype(np.float64) - self.low) * (255 / (self.high - self.low))
            levels[top : top + _ROWS] = np.rint(scaled).clip(0, 255)  # of 16 bits no value is near a half
        return levels

    def say(self, where: str) -> None:
        """A `DataWarning` where the values that were met use little of the range, or much is outside of it."""
        if self.least > self.greatest:
            return
        least, greatest = number_text(self.least), number_text(self.greatest)
        slack = (self.high - self.low) / 10
        if self.full and (self.greatest - self.least) * _EMPTY < FULL[1]:
            first, last = (int(v + 128) // 257 for v in (self.least, self.greatest))
            found = (
                f"values of 16 bits from {least} to {greatest} become levels {first} to {last} of 0 to 255; "
                f"--value-range {least} {greatest}, auto or percentile spreads them"
            )
        elif not self.full and (self.least < self.low - slack or self.greatest > self.high + slack):
            found = (
                f"values from {least} to {greatest}, of which those outside of {number_text(self.low)} to "
                f"{number_text(self.high)} (--value-range) are clipped"
            )
        else:
            return
        warnings.warn(f"{where}: {found}", DataWarning, stacklevel=3)


def number_text(value: float) -> str:
    """A value of a pixel, as it is typed."""
    return f"{value:.0f}" if value == value // 1 else f"{value:.6g}"
