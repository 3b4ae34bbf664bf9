"""A data set of the caller's own, in memory: any sequence of images, or of (image, label), as pixels and labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tarflow.data.errors import DataError
from tarflow.data.labels import label_tensors
from tarflow.data.options import LoadOptions
from tarflow.data.records import Records, Source
from tarflow.data.sets import ImageSet, Splits, seeded_split
from tarflow.fields import integer
from tarflow.measure import check_levels


def dataset_splits(
    dataset: Any,
    held_out: Any = None,
    *,
    levels: int = 256,
    class_names: Sequence[str] | None = None,
    held_out_fraction: float = 0.1,
    split_seed: int = 0,
) -> Splits:
    """What `dataset_images` makes of two data sets, or of one from which a seeded fraction is held out."""
    train = dataset_images(dataset, levels=levels, class_names=class_names, where="data")
    if held_out is not None:
        other = dataset_images(held_out, levels=levels, class_names=train.class_names or None, where="held_out")
        if other.image_shape != train.image_shape:
            raise DataError(f"held_out: expected images {train.image_shape}, as in data, got {other.image_shape}")
        if (other.labels is None) != (train.labels is None):
            raise DataError("held_out: expected labels as in data: both with, or both without")
        return Splits(train, other, True, ())
    options = LoadOptions(held_out_fraction=held_out_fraction, split_seed=split_seed)  # which checks them
    chosen = seeded_split("data", len(train), options.held_out_fraction, options.split_seed)
    learned, kept = map(train.subset, chosen)
    return Splits(learned, kept, False, ())


def dataset_images(
    dataset: Any, *, levels: int = 256, class_names: Sequence[str] | None = None, where: str = "data"
) -> ImageSet:
    """The images and labels of a map-style data set: `len(dataset)` and `dataset[i]`, as `torch.utils.data.Dataset`.

    Args:
        dataset: whose items are images, or pairs of an image and an integer label, all of one size. An image is a
            picture of Pillow's (grey or RGB), an array (H, W) or (H, W, C), or a tensor (C, H, W) or (H, W); of
            uint8, that is before anybody has scaled it.
        levels: how many values a pixel can take; 0 … levels-1.
        class_names: None takes `dataset.classes`, where there is one, or else the numbers.

    Raises:
        ValueError: an item that is something else; the message names it.
    """
    check_levels(levels)
    pixels: list[Tensor] = []
    labels: list[int] = []
    for index in range(len(dataset)):
        item, name = dataset[index], f"{where}[{index}]"
        image, label = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        pixels.append(_pixels(image, name, levels))
        if pixels[-1].shape != pixels[0].shape:
            raise DataError(f"{name}: expected {tuple(pixels[0].shape)} as {where}[0], got {tuple(pixels[-1].shape)}")
        if label is not None:
            labels.append(integer(f"{name}: label", label, 0))
        if len(labels) not in (0, index + 1):
            raise DataError(f"{name}: expected every item to have a label, or none")
    if not pixels:
        raise DataError(f"{where}: expected at least one image, got an empty data set")
    names = tuple(map(str, class_names or getattr(dataset, "classes", None) or ()))
    part = Records("all", [f"{where}:{index}" for index in range(len(pixels))], labels or None, lambda rows: iter(()))
    (found,), classes = label_tensors(where, Source((part,), names or None), (part,), [range(len(part))], None)
    return ImageSet(torch.stack(pixels), found, tuple(part.names), levels, classes)


def _pixels(image: Any, name: str, levels: int) -> Tensor:
    """One image as (C, H, W) uint8."""
    if hasattr(image, "getbands"):  # a picture of Pillow's
        image = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1) if image.ndim == 3 else image))
    if not isinstance(image, Tensor):
        raise DataError(f"{name}: expected a picture, an array or a tensor, got {type(image).__name__}")
    image = image.unsqueeze(0) if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != torch.uint8:
        got = f"{tuple(image.shape)} {image.dtype}"
        raise DataError(f"{name}: expected uint8 pixels of 1 or 3 channels, before they are scaled, got {got}")
    if int(image.max()) >= levels:
        raise DataError(f"{name}: expected levels 0 to {levels - 1}, got {int(image.max())}")
    return image.cpu()
