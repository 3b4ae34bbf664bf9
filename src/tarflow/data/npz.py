"""A NumPy archive: key `images`, uint8, and optionally `labels`."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tarflow.data.errors import DataError
from tarflow.data.records import Part, RowNames, Source


def open_npz(path: Path) -> Source:
    """Images (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3, and labels (N,), whole numbers from 0.

    Other keys are not read. Raises `DataError` naming the file and the key.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: expected an .npz archive, got another or a damaged file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "images" not in archive:
                raise DataError(f"{path}: expected a key 'images', got {', '.join(archive) or 'no keys'}")
            images = archive["images"]
            labels = archive.get("labels")
    except DataError:
        raise
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a readable .npz archive: {error}") from None

    images = _channels_first(images, path)
    if labels is not None:
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise DataError(
                f"{path}: key 'labels': expected {len(images)} whole numbers, "
                f"got {labels.dtype} of shape {labels.shape}"
            )
        if labels.size and labels.min() < 0:
            raise DataError(f"{path}: key 'labels': expected whole numbers from 0, got {labels.min()}")
        labels = labels.tolist()
    return Source((Part("all", RowNames([(path.name, len(images))]), labels, lambda: iter(images)),), files=(path,))


def _channels_first(images: Any, path: Path) -> Any:
    """`images` as (N, C, H, W), whichever of the layouts they come in."""
    expected = "expected uint8 of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
    got = f"{images.dtype} of shape {images.shape}"
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise DataError(f"{path}: key 'images': {expected}, got {got}")
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise DataError(f"{path}: key 'images': {expected}, got {got}{', which could be either' if first else ''}")
    return images if first else images.transpose(0, 3, 1, 2)
