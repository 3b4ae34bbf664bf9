"""Features of real images: computed once, kept under a digest, and continued where an interruption left them.

    CACHE/features/DIGEST/00000.npy …    (n, d) float32, `CHUNK` images each, and a digest of that behind it
    CACHE/classifiers/DIGEST.safetensors networks of the extractor "Classifier"

The digest is of the images, the number of levels and the extractor (its weights and how it resizes), so that nothing
stale is ever read; what is kept may be deleted at any time, and what is damaged is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tarflow import digests, storage
from tarflow.data.sets import ImageSet, Splits
from tarflow.evaluation.quality.distances import Moments, moments
from tarflow.evaluation.quality.extractors.extractor import Extractor

CHUNK = 256  # images a file: what an interruption costs at most, some seconds of EfficientNet on a CPU
MAX_REFERENCE = 50_000  # training images that samples are compared with, as is usual; of more, a fixed choice
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """Real images as features, which samples are compared with.

    Attributes:
        features: (M, d) of the training images, as they are stored: never flipped.
        held_out: (K, d) of the held-out images. What they score against `features` is the floor: no sampler that does
            not copy does better.
        digest: of the training images, the extractor and the size.
    """

    features: Tensor
    held_out: Tensor
    digest: str

    @cached_property
    def moments(self) -> Moments:
        """Of `features`, computed once."""
        return moments(self.features)


def open_reference(
    splits: Splits,
    extractor: Extractor,
    cache: Path | None,
    *,
    limit: int = MAX_REFERENCE,
    progress: Progress | None = None,
) -> Reference:
    """Features of at most `limit` training and held-out images each, from the cache as far as they are there.

    Raises ValueError where either set has fewer than two images.
    """
    found, digests = [], []
    for name, images in (("training", splits.train), ("held-out", splits.held_out)):
        if len(images) < 2:
            raise ValueError(f"expected at least two {name} images to compare with, got {len(images)}")
        chosen = images if len(images) <= limit else images.choice(limit, 0)
        found.append(real_features(chosen, extractor, cache, progress))
        digests.append(_digest(chosen, extractor))
    return Reference(found[0], found[1], digests[0])


def real_features(
    images: ImageSet, extractor: Extractor, cache: Path | None, progress: Progress | None = None
) -> Tensor:
    """The features of a set of images, (N, d) float32; those in the cache are read, the others computed and kept.

    Where another process is keeping the same ones just now, what it has kept is read, and nothing is written.
    """
    if cache is None:
        return extractor.features(images.images, images.levels, progress)
    folder = cache / "features" / _digest(images, extractor)
    parts = []
    with contextlib.ExitStack() as held:
        keep = False
        with contextlib.suppress(storage.InUse), digests.optional(cache):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(storage.exclusive(folder))
            storage.remove_leftovers(folder)
            keep = True
        for number, start in enumerate(range(0, len(images), CHUNK)):
            pixels = images.images[start : start + CHUNK]
            file = folder / f"{number:05}.npy"
            part = _kept(file, (len(pixels), extractor.dims))
            if part is None:
                counted = None if progress is None else partial(_counted, progress, start, len(images))
                part = extractor.features(pixels, images.levels, counted)
                if keep:
                    buffer = io.BytesIO()
                    np.save(buffer, part.numpy())
                    keep = False
                    with digests.optional(cache):
                        digests.keep(file, buffer.getvalue())
                        keep = True
            parts.append(part)
    return torch.cat(parts)


def _counted(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    progress(before + done, total)


def _digest(images: ImageSet, extractor: Extractor) -> str:
    """Of everything that the features depend on; of the labels too, which changes nothing but costs nothing."""
    shape = "x".join(map(str, images.images.shape))
    text = f"{images.digest()}\0{shape}\0{images.levels}\0{extractor.name}\0{extractor.digest}\0{extractor.dims}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _kept(file: Path, shape: tuple[int, int]) -> Tensor | None:
    """The features in a file; None where there is none, or it is not what was written."""
    if (contents := digests.kept(file)) is None:
        return None
    try:
        values = np.load(io.BytesIO(contents), allow_pickle=False)
    except Exception:  # NumPy reads the header as Python's own syntax, and raises what its parser does
        return None
    if values.shape != shape or values.dtype != np.float32:
        return None
    return torch.from_numpy(values)
