"""Pictures for people to look at: Pillow's, PNG files, and contact sheets with a line of text below each image.

Where images come from a program they may be what a flow draws, pixels, or Pillow's pictures, and `of` says what they
are images of: a run or a `Measure`, which knows the levels, or None for 256.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tarflow.data.images import from_array, plain, to_array
from tarflow.measure import Measure, to_8bit
from tarflow.storage import replacing_file

CAPTION = 14  # pixels of a line of text below an image


def save_png(path: str | Path, pixels: Tensor) -> None:
    """Write `pixels` (C, H, W) uint8, C 1 or 3, 256 levels, as a PNG file, whole or not at all."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"expected (C, H, W) uint8 with C 1 or 3, got {tuple(pixels.shape)} {pixels.dtype}")
    with replacing_file(path) as temporary:
        from_array(pixels.cpu().numpy()).save(temporary, format="PNG")


def grid(images: Tensor, columns: int, padding: int = 2) -> Tensor:
    """A sheet of `images` (N, C, H, W) uint8, row by row, on white: (C, r(H+p)+p, c(W+p)+p), c columns, padding p."""
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
        raise ValueError(f"expected at least one image, (N, C, H, W) uint8, got {tuple(images.shape)} {images.dtype}")
    if columns < 1 or padding < 0:
        raise ValueError(f"expected columns >= 1 and padding >= 0, got {columns} and {padding}")
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = images.new_full((channels, rows * (height + padding) + padding, columns * (width + padding) + padding), 255)
    for i, image in enumerate(images):
        top = padding + (i // columns) * (height + padding)
        left = padding + (i % columns) * (width + padding)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def columns_by_class(classes: int) -> int | None:
    """One column a class where they fit on a sheet, and None, about square, where they do not or there are none."""
    return classes if 2 <= classes <= 20 else None


def class_captions(labels: Sequence[int], names: Sequence[str]) -> list[str] | None:
    """What stands below each image of a sheet: the name of its class, where there are too many for a column each.

    None where the columns are the classes. A name that is not in Latin letters, which the font has not, is a number.
    """
    if columns_by_class(len(names)) is not None or len(names) < 2:
        return None
    latin = [name.encode("latin-1", "replace").decode("latin-1") == name for name in names]
    shown = [name if latin[k] else str(k) for k, name in enumerate(names)]
    return ["null" if label < 0 else shown[label] for label in labels]


def captioned(images: Tensor, captions: Sequence[str]) -> Tensor:
    """Images (N, C, H, W) uint8 with a line of text below each, black on white, cut to their width: (N, C, H+14, W)."""
    font, width = ImageFont.load_default(), images.shape[-1]

    def line(text: str) -> Any:
        cut = text
        while cut and font.getlength(cut if cut == text else f"{cut}…") > width - 2:
            cut = cut[:-1]
        strip = Image.new("L", (width, CAPTION), "white")
        ImageDraw.Draw(strip).text((1, 0), cut if cut == text else f"{cut}…", "black", font)
        return torch.from_numpy(np.array(strip))

    lines = {text: line(text) for text in set(captions)}
    strips = torch.stack([lines[text] for text in captions])[:, None].expand(-1, images.shape[1], -1, -1)
    return torch.cat([images.cpu(), strips], dim=2)


def to_images(images: Tensor, of: Any = None) -> list[Image.Image]:
    """Tensors as Pillow's pictures, grey (mode L) or RGB.

    Args:
        images: (N, C, H, W), or one of them, (C, H, W), with C 1 or 3: floating point as a flow sees and draws them,
            -1 … 1, rounded to a level and clipped; or pixels, uint8 levels 0 … L-1.
        of: a run or a `Measure`, which says L and which level a number belongs to; None is 256 levels.

    Raises:
        ValueError: another shape or dtype, numbers that are not finite, a level that is not below L.

    >>> import torch, tarflow
    >>> grey = tarflow.to_images(torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(1, 1, 2, 2))[0]
    >>> grey.mode, list(grey.tobytes())
    ('L', [0, 128, 255, 255])
    >>> list(tarflow.to_images(torch.tensor([[[0, 8, 16]]], dtype=torch.uint8), tarflow.Measure(17))[0].tobytes())
    [0, 128, 255]
    """
    return [from_array(image.numpy()) for image in _bytes_of(images, of)]


def _bytes_of(images: Tensor | Sequence[Image.Image], of: Any = None) -> Tensor:
    """Images of any kind that `to_images`, `show` and `save_sheet` take as (N, C, H, W) uint8 of 256 levels."""
    if not isinstance(images, Tensor):
        return _stacked(images)
    measure = Measure() if of is None else getattr(of, "measure", of)
    if not isinstance(measure, Measure):
        raise ValueError(f"of: expected a run, a tarflow.Measure or None, got {type(of).__name__}")
    images = images.detach().cpu()
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images: expected (N, C, H, W) or (C, H, W) with C 1 or 3, got {tuple(images.shape)}")
    if images.is_floating_point():
        images = measure.pixels(images)
    elif images.dtype != torch.uint8:
        raise ValueError(f"images: expected floating point, -1 … 1, or uint8 pixels, got {images.dtype}")
    elif images.numel() and int(images.max()) >= measure.levels:
        raise ValueError(f"images: expected levels 0 to {measure.levels - 1}, got {int(images.max())}")
    return to_8bit(images, measure.levels)


def _stacked(pictures: Any) -> Tensor:
    """Pillow's pictures of one size as (N, C, H, W) uint8; grey ones are RGB beside those in colour."""
    pictures = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    for number, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise ValueError(f"images[{number}]: expected one of Pillow's pictures, got {type(picture).__name__}")
    if not pictures:
        raise ValueError("images: expected at least one, got none")
    arrays = [torch.from_numpy(np.array(to_array(plain(picture)))) for picture in pictures]
    if len(sizes := {tuple(array.shape[1:]) for array in arrays}) > 1:
        several = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise ValueError(f"images: expected one size, got {several} (height x width)")
    channels = max(len(array) for array in arrays)
    return torch.stack([array.expand(channels, -1, -1) for array in arrays])


@dataclass(frozen=True, eq=False, repr=False)
class Sheet:
    """Images side by side, as `show` makes them: a notebook displays it, `image` is Pillow's picture of it.

    Attributes:
        pixels: (C, H, W) uint8, of all of it.
        count: how many images are on it.
    """

    pixels: Tensor
    count: int

    @property
    def image(self) -> Image.Image:
        return from_array(self.pixels.numpy())

    def save(self, path: str | Path) -> None:
        """Write it as a PNG file, whole or not at all."""
        save_png(path, self.pixels)

    def _repr_png_(self) -> bytes:
        """What Jupyter displays."""
        file = io.BytesIO()
        self.image.save(file, format="PNG")
        return file.getvalue()

    def __repr__(self) -> str:
        _, height, width = self.pixels.shape
        return f"<a sheet of {self.count} image{'' if self.count == 1 else 's'}, {height}x{width} pixels>"


def show(
    images: Tensor | Sequence[Image.Image],
    of: Any = None,
    *,
    columns: int | None = None,
    zoom: int | None = None,
    captions: Sequence[str] | None = None,
) -> Sheet:
    """Images on one sheet, which a notebook displays where it is the last line of a cell.

    Args:
        images: of what `to_images` takes, or Pillow's pictures of one size. of: as there.
        columns: of the sheet; None makes it about square.
        zoom: each pixel becomes zoom x zoom; None enlarges small images to 32 pixels or more, because a browser would
            blur them, and to 64 where they have captions.
        captions: a line of text below each image.

    >>> import torch, tarflow
    >>> tarflow.show(torch.zeros(6, 1, 8, 8), columns=3)
    <a sheet of 6 images, 70x104 pixels>
    """
    pixels = _bytes_of(images, of)
    if captions is not None and len(captions) != len(pixels):
        raise ValueError(f"captions: expected {len(pixels)}, one an image, got {len(captions)}")
    columns = min(columns or max(1, math.ceil(math.sqrt(len(pixels)))), max(1, len(pixels)))
    zoom = zoom or max(1, math.ceil((64 if captions else 32) / pixels.shape[-2]))
    enlarged = pixels.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)
    return Sheet(grid(captioned(enlarged, captions) if captions else enlarged, columns), len(pixels))


def save_sheet(
    path: str | Path,
    images: Tensor | Sequence[Image.Image],
    columns: int | None = None,
    zoom: int | None = None,
    captions: Sequence[str] | None = None,
    of: Any = None,
) -> None:
    """Write images as one PNG sheet, whole or not at all; arguments as of `show`."""
    show(images, of, columns=columns, zoom=zoom, captions=captions).save(path)
