"""What a section of the report is made of: text, drawings, and figures of rows of images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image
from torch import Tensor

from tarflow.data.images import from_array
from tarflow.report.markup import Markup, element

CELL = 72  # pixels, about, that a smaller image is enlarged to by a whole number: ten of them fill a line
GAP = 4  # pixels between two images, transparent so that they lie on whatever colour the page has


@dataclass(frozen=True)
class Strip:
    """Images in a row: (N, C, H, W) uint8, with what they are (`label`) and what one would see (`alt`)."""

    label: str
    images: Tensor
    alt: str


@dataclass(frozen=True)
class Figure:
    """Strips below each other under one caption; `name` is that of its PNG file."""

    name: str
    strips: Sequence[Strip]
    caption: str


@dataclass(frozen=True)
class Drawing:
    """SVG elements side by side, where there is room, under one caption."""

    drawings: Sequence[Markup]
    caption: str


Parts: TypeAlias = "list[str | Figure | Drawing]"
"""What comes below a heading: text (a paragraph each), markup, figures and drawings, in their order."""


@dataclass(frozen=True)
class Section:
    """A heading and what comes below it; `name` is its id on the page."""

    name: str
    title: str
    parts: Parts


def zoom_of(images: Tensor) -> int:
    """How many times a small image is enlarged, as a browser would blur it."""
    return max(1, round(CELL / images.shape[-1]))


def sheet(rows: Sequence[Tensor]) -> Image.Image:
    """Rows of images (N, C, H, W) uint8, each row in a zoom of its own, on a transparent ground."""
    sizes = []
    for images in rows:
        zoom = zoom_of(images)
        sizes.append((images.shape[-1] * zoom, images.shape[-2] * zoom))
    width = max(len(images) * (w + GAP) - GAP for images, (w, _) in zip(rows, sizes, strict=True))
    height = sum(h + GAP for _, h in sizes) - GAP
    grey = all(images.shape[1] == 1 for images in rows)
    canvas = Image.new("LA" if grey else "RGBA", (width, height))
    top = 0
    for images, size in zip(rows, sizes, strict=True):
        for column, pixels in enumerate(images):
            tile = from_array(pixels.numpy()).resize(size, Image.Resampling.NEAREST)
            canvas.paste(tile.convert(canvas.mode), (column * (size[0] + GAP), top))
        top += size[1] + GAP
    return canvas


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def strip_image(strip: Strip) -> Markup:
    """The strip as an `img` that carries its own data."""
    image = sheet([strip.images])
    data = base64.b64encode(png(image)).decode()
    return element(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=strip.alt,
        width=image.width,
        height=image.height,
        class_="pixels" if zoom_of(strip.images) > 1 else None,
    )
