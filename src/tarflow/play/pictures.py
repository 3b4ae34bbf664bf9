"""Pictures between a browser and a model: bytes of files to pixels of the model's size, and pixels to addresses."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tarflow.checkpoint import Run
from tarflow.data.errors import DataError
from tarflow.data.images import Values, decode, from_array, to_array
from tarflow.data.options import LoadOptions
from tarflow.data.sets import middle
from tarflow.measure import Measure, requantize
from tarflow.report.parts import data_uri
from tarflow.run_data import image_options

MOST_FILES = 16  # that are looked at together
MOST_BYTES = 6_000_000  # of a file
MOST_PIXELS = 1 << 24  # of a picture, which takes a dozen bytes each while it is read
NAME = 80  # characters of a file's name that are shown
SHOWN_SIDE = 128  # pixels, about, that a small image is enlarged to: a browser's own enlargement blurs it in print


@dataclass(frozen=True)
class Picture:
    """A picture that somebody gave, as the model's data are: its name, and (C, H, W) uint8, or why there are none."""

    name: str
    pixels: Tensor | None
    problem: str = ""


def read_pictures(run: Run, text: Any, most: int = MOST_FILES) -> list[Picture]:
    """The pictures of a JSON list of `{"name": …, "data": base64}`, one a file, as the model's data are.

    What cannot be read says why.

    Raises:
        ValueError: no such list, or more than `most` files.
    """
    return _pictures(text, most, lambda data: read_image(run, data))


def read_condition(name: str, text: Any, shape: tuple[int, ...]) -> Tensor | None:
    """The one picture of such a list that a model is given, (1, C, H, W), -1 … 1; None where there is none.

    Raises ValueError naming the field: no such list, several, or what cannot be read.
    """
    channels, height, width = shape

    def read(data: bytes) -> Tensor:
        image = decode(data, channels, (height, width), Values("full"), MOST_PIXELS)
        return torch.from_numpy(to_array(image).copy())

    for picture in _pictures(text, 1, read):
        if picture.pixels is None:
            raise ValueError(f"{name}: {picture.name}: {picture.problem}")
        return Measure().clean(picture.pixels)[None]
    return None


def _pictures(text: Any, most: int, read: Callable[[bytes], Tensor]) -> list[Picture]:
    try:
        listed = json.loads(text) if isinstance(text, str) and text else []
    except (ValueError, RecursionError):
        raise ValueError("pictures: expected a JSON list of files") from None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError("pictures: expected a JSON list of files")
    if len(listed) > most:
        raise ValueError(f"pictures: expected at most {most} at a time, got {len(listed)}")
    return [_picture(read, number, entry) for number, entry in enumerate(listed, 1)]


def _picture(read: Callable[[bytes], Tensor], number: int, entry: dict[str, Any]) -> Picture:
    given, data = entry.get("name"), entry.get("data")
    name = given if isinstance(given, str) and given.strip() else f"picture {number}"
    name = " ".join(name.split()).encode(errors="replace").decode()
    name = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
    try:
        return Picture(name, read(_bytes(data)))
    except DataError as error:
        return Picture(name, None, str(error))


def _bytes(data: Any) -> bytes:
    if not isinstance(data, str):
        raise DataError("expected the contents of a file")
    if len(data) * 3 // 4 > MOST_BYTES + 2:
        raise DataError(f"{len(data) * 3 // 4 / 1e6:.1f} MB: expected at most {MOST_BYTES / 1e6:g} MB")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("expected the contents of a file in base64") from None


def read_image(run: Run, data: bytes) -> Tensor:
    """The contents of an image file as the model's data are: made to fit, and levelled, (C, H, W) uint8.

    Raises `DataError` with the reason, before anything large is unpacked.
    """
    model = run.config.model
    options = image_options(run) if run.config.data else LoadOptions(image_size=model.image_shape)
    size, values = options.kept_size, Values(options.value_range)
    image = decode(data, model.channels, size, values, MOST_PIXELS, options.aspect, options.pad_with)
    pixels = torch.from_numpy(middle(to_array(image), options.size).copy())
    return requantize(pixels, 256, run.levels)


def address(pixels: Tensor) -> str:
    """An image (C, H, W) uint8 of 256 levels as an address that holds it, enlarged where it is small."""
    image = from_array(pixels.cpu().numpy())
    zoom = max(1, round(SHOWN_SIDE / max(image.size)))
    return data_uri(image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST))


def addresses(images: Tensor | Sequence[Tensor]) -> list[str]:
    """`address` of each of several."""
    return [address(image) for image in images]
