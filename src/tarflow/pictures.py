"""Pictures for people to look at: PNG files, and contact sheets with a line of text below each image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tarflow.data.images import from_array
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


def save_sheet(
    path: str | Path,
    images: Tensor,
    columns: int | None = None,
    zoom: int | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Write `images` (N, C, H, W) uint8 as one PNG sheet, whole or not at all.

    `columns` None makes it about square. Each pixel becomes zoom x zoom; None enlarges small images to 32 pixels or
    more, because a browser would blur them, and to 64 where they have `captions`, one each.
    """
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    zoom = zoom or max(1, math.ceil((64 if captions else 32) / images.shape[-2]))
    enlarged = images.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)
    save_png(path, grid(captioned(enlarged, captions) if captions else enlarged, columns))
