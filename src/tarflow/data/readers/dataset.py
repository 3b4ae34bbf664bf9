"""A data set of the caller's own, in memory: any sequence of images, or of (image, label)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tarflow.config import ValueRange
from tarflow.data.errors import DataError
from tarflow.data.images import Values, plain, to_array
from tarflow.data.records import Records, Source, Split
from tarflow.fields import integer
from tarflow.measure import check_levels


def open_dataset(
    dataset: Any,
    held_out: Any = None,
    levels: int = 256,
    class_names: Sequence[str] | None = None,
    value_range: ValueRange = "full",
    where: str = "data",
) -> Source:
    """A map-style data set: `len(dataset)` and `dataset[i]`, as `torch.utils.data.Dataset`; each item is read once.

    Args:
        dataset: whose items are images, or pairs of an image and an integer label. An image is a picture of Pillow's
            of any mode, which is read as its file would be; or an array (H, W) or (H, W, C), or a tensor (C, H, W) or
            (H, W), of uint8, that is before anybody has scaled it.
        held_out: another one, which is not trained on.
        levels: how many values a pixel can take; 0 … levels-1.
        class_names: None takes `dataset.classes`, where there is one, or else the numbers.

        value_range: of pictures of more than 8 bits, which two values become black and white, or "full".
        where: what messages call `dataset`.

    Raises:
        ValueError: an item that is something else; the message names it.
    """
    check_levels(levels)
    if value_range in ("auto", "percentile"):
        raise DataError(f"value_range: expected two numbers or 'full' for images in memory, got {value_range!r}")
    names = tuple(map(str, class_names or getattr(dataset, "classes", None) or ()))
    if held_out is None:
        parts = [_records("all", where, dataset, levels, value_range)]
    else:
        parts = [
            _records("train", where, dataset, levels, value_range),
            _records("validation", "held_out", held_out, levels, value_range),
        ]
    return Source(tuple(parts), names or None, levels)


def _records(split: Split, where: str, dataset: Any, levels: int, value_range: ValueRange) -> Records:
    images, labels, values = [], list[int](), Values(value_range)
    for index in range(len(dataset)):
        item, name = dataset[index], f"{where}[{index}]"
        image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        images.append(_pixels(image, name, levels, values))
        if label is not None:
            labels.append(integer(f"{name}: label", label, 0))
        if len(labels) not in (0, index + 1):
            raise DataError(f"{name}: expected every item to have a label, or none")
    values.say(where)
    names = [f"{where}[{index}]" for index in range(len(images))]
    return Records(split, names, labels or None, lambda rows: map(images.__getitem__, rows))


def _pixels(image: Any, name: str, levels: int, values: Values) -> Any:
    """One image as (C, H, W) uint8."""
    if isinstance(image, Image.Image):
        try:
            image = to_array(plain(image, values))
        except (DataError, OSError) as error:  # a picture may be of a file that is read only now
            raise DataError(f"{name}: {error}") from None
    elif isinstance(image, np.ndarray):
        image = image.transpose(2, 0, 1) if image.ndim == 3 else image
    elif isinstance(image, Tensor):
        image = (image if image.dtype == torch.uint8 else image.float()).numpy(force=True)  # of any kind, to be named
    else:
        raise DataError(f"{name}: expected a picture, an array or a tensor, got {type(image).__name__}")
    image = image[None] if image.ndim == 2 else image
    if image.ndim != 3 or len(image) not in (1, 3) or image.dtype != np.uint8:
        got = f"{image.shape} {image.dtype}"
        raise DataError(f"{name}: expected uint8 pixels of 1 or 3 channels, before they are scaled, got {got}")
    if image.max() >= levels:
        raise DataError(f"{name}: expected levels 0 to {levels - 1}, got {image.max()}")
    return image
