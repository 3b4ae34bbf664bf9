"""Stand-ins for somebody's photographs: several sizes, formats and orientations, rendered, small and quick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZES = [(96, 64), (64, 96), (80, 80), (120, 68), (51, 77)]  # width, height
SUFFIXES = [".jpg", ".png", ".webp", ".jpeg", ".JPG"]


def photograph(seed: int, size: tuple[int, int]) -> Image.Image:
    """A horizon under a sky, a sun or a house before it: smooth, coloured, and never twice the same."""
    rng = np.random.default_rng(seed)
    width, height = size
    sky, ground = rng.uniform([60, 90, 140], [160, 190, 255]), rng.uniform([30, 60, 20], [140, 150, 90])
    horizon = int(height * rng.uniform(0.45, 0.75))
    rows = np.linspace(0, 1, height)[:, None, None]
    pixels = np.where(np.arange(height)[:, None, None] < horizon, sky * (0.7 + 0.4 * rows), ground * (1.2 - 0.5 * rows))
    pixels = np.broadcast_to(pixels, (height, width, 3)) + rng.normal(0, 3, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    x, r = int(rng.uniform(0.2, 0.8) * width), int(0.12 * min(size))
    if seed % 2:
        draw.ellipse((x - r, horizon // 3 - r, x + r, horizon // 3 + r), fill=(255, 240, 180))
    else:
        draw.rectangle((x - r, horizon - 2 * r, x + r, horizon + r // 2), fill=(150, 70, 50))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def make_photographs(folder: Path, count: int, classes: tuple[str, ...] = ()) -> None:
    """Write `count` photographs, in subfolders where there are classes; some upright only by their EXIF orientation."""
    for k in range(count):
        size = SIZES[k % len(SIZES)]
        place = folder / classes[k % len(classes)] if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        image = photograph(k, size)
        options = {}
        if k % 7 == 3:
            exif = Image.Exif()
            exif[0x0112] = 6  # turned a quarter by the camera
            options["exif"] = exif
        if k % 11 == 5:
            image = image.convert("L")
        image.save(place / f"IMG_{k:04d}{SUFFIXES[k % len(SUFFIXES)]}", **options)
