"""What a section of the report is made of: text, tables, drawings, and figures of rows of images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from tarflow.data.images import from_array

CELL = 72  # pixels, about, that a smaller image is enlarged to by a whole number: ten of them fill a line
GAP = 4  # pixels between two images, transparent so that they lie on whatever colour the page has


def templates(package: str) -> Environment:
    """The templates of a package. What they are given is escaped, unless it is Markup, made by templates alone."""
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


TEMPLATES = templates("tarflow.report")


@dataclass(frozen=True)
class Strip:
    """Images in a row: (N, C, H, W) uint8, with what they are (`label`) and what one would see (`alt`)."""

    label: str
    images: Tensor
    alt: str

    @property
    def zoom(self) -> int:
        """How many times a small image is enlarged, as a browser would blur it."""
        return max(1, round(CELL / self.images.shape[-1]))


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


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows; `numbers` keeps what stands in a cell on one line."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = False


Parts: TypeAlias = "list[str | Table | Figure | Drawing]"
"""What comes below a heading, in this order; text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading and what comes below it; `name` is its id on the page."""

    name: str
    title: str
    parts: Parts


def sheet(strips: Sequence[Strip]) -> Image.Image:
    """Strips below each other, each in a zoom of its own, on a transparent ground."""
    sizes = [(s.images.shape[-1] * s.zoom, s.images.shape[-2] * s.zoom) for s in strips]
    width = max(len(s.images) * (w + GAP) - GAP for s, (w, _) in zip(strips, sizes, strict=True))
    height = sum(h + GAP for _, h in sizes) - GAP
    canvas = Image.new("LA" if all(s.images.shape[1] == 1 for s in strips) else "RGBA", (width, height))
    top = 0
    for strip, size in zip(strips, sizes, strict=True):
        for column, pixels in enumerate(strip.images):
            tile = from_array(pixels.numpy()).resize(size, Image.Resampling.NEAREST)
            canvas.paste(tile.convert(canvas.mode), (column * (size[0] + GAP), top))
        top += size[1] + GAP
    return canvas


def png(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    """An image as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"


TEMPLATES.globals |= {"sheet": sheet, "data_uri": data_uri}
