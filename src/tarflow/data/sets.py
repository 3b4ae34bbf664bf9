"""Images as those who use them get them: a set with its labels, numbers and names, and the two sets of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.architecture import condition_parts
from tarflow.data.errors import DataError
from tarflow.digests import new_digest
from tarflow.seeding import seeded_permutation

_SLICE_BYTES = 1 << 24  # digested at a time, so that a mapped file passes through and does not stay


def set_digest(pixels: Any, shape: Sequence[int], labels: Tensor | None) -> str:
    """`ImageSet.digest` of images (N, C, H, W), whose pixels a digest has seen, and labels: (N,) int64, or None."""
    digest = pixels.copy()
    digest.update(str(tuple(shape)).encode())
    if labels is not None:
        digest.update(labels.numpy().data)
    return str(digest.hexdigest())


def given_values(condition: str, labels: Tensor | None, numbers: Tensor | None) -> Any:
    """Values as a flow with this condition takes them: labels (N,), numbers (N, K), or a tuple of both.

    None is null in all rows: where there is no condition, or nothing is known of what it asks for.
    """
    known = {"classes": labels, "vector": numbers}
    found = tuple(known.get(name) for name, _ in condition_parts(condition))
    if all(value is None for value in found):
        return None
    return found[0] if len(found) == 1 else found


def middle(images: Any, size: tuple[int, int] | None) -> Any:
    """The middle (H, W) of images (…, H', W'), which is no copy; `images` without a size."""
    if size is None:
        return images
    top, left = ((have - want) // 2 for have, want in zip(images.shape[-2:], size, strict=True))
    return images[..., top : top + size[0], left : left + size[1]]


@dataclass(frozen=True, eq=False)  # equality of tensors is no truth value
class ImageSet:
    """Images with their labels and names, in memory; or mapped from a file, and then nobody may write to them.

    It is a map-style data set, as `torch.utils.data.DataLoader` takes it: item i is the pixels (C, H, W) uint8 and the
    label, or the pixels alone where there are no labels.

    >>> from tarflow.data.load import load
    >>> held_out = load("digits").held_out
    >>> pixels, label = held_out[0]
    >>> len(held_out), pixels.shape, label
    (180, torch.Size([1, 8, 8]), 8)
    """

    images: Tensor  # (N, C, H, W) uint8, 0..levels-1
    labels: Tensor | None  # (N,) int64, an index into class_names
    names: Sequence[str]  # one an image: relative path, "file.parquet:row", "digits:17"
    levels: int
    class_names: tuple[str, ...]  # empty where there are no labels
    mapped: bool = False
    known_digest: str | None = None  # what `digest` would compute, where somebody already has
    numbers: Tensor | None = None  # (N, K) float32, on which they are conditioned
    number_names: tuple[str, ...] = ()
    wide: Tensor | None = None  # (N, C, H', W') uint8, whose middle `images` are; training cuts elsewhere, too

    def __post_init__(self) -> None:
        assert self.images.ndim == 4 and self.images.dtype == torch.uint8, (self.images.shape, self.images.dtype)
        assert len(self.names) == len(self.images)
        assert self.numbers is None or self.numbers.shape == (len(self.images), len(self.number_names))
        assert self.labels is None or (self.labels.shape == (len(self.images),) and self.labels.dtype == torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, int]:
        pixels = self.images[index]
        return pixels if self.labels is None else (pixels, int(self.labels[index]))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def values(self, condition: str) -> Any:
        """What a flow with this condition is given of them; see `given_values`."""
        return given_values(condition, self.labels, self.numbers)

    def windowed(self, size: tuple[int, int] | None) -> ImageSet:
        """These images as `wide` ones, of which the middle of that size is seen; as they are where they have it."""
        if size in (None, self.image_shape[1:]):
            return self
        return dataclasses.replace(self, images=middle(self.images, size), wide=self.images)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The images at `indices`, in that order, copied."""
        chosen = torch.as_tensor(indices, device=self.images.device, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[chosen]
        numbers = None if self.numbers is None else self.numbers[chosen]
        names = tuple(self.names[i] for i in chosen.tolist())
        known: dict[str, Any] = {"numbers": numbers, "number_names": self.number_names}
        return ImageSet(self.images[chosen], labels, names, self.levels, self.class_names, **known)

    def choice(self, count: int, seed: int) -> ImageSet:
        """At most `count` of the images, chosen by `seed`, in their order: the first ones may all be of one class."""
        chosen = seeded_permutation(len(self), "choice", seed)[:count]
        return self.subset(chosen.sort().values)

    def digest(self) -> str:
        """A digest of the images, labels and numbers: what resuming a run must find unchanged.

        Of windows it is that of the wide images and of the size that is seen.
        """
        whole = self.images if self.wide is None else self.wide
        if (found := self.known_digest) is None:
            pixels = new_digest()
            for part in whole.view(-1).split(_SLICE_BYTES):
                pixels.update(part.numpy().data)
            found = set_digest(pixels, whole.shape, self.labels)
        if self.wide is None and self.numbers is None:
            return found
        seen = new_digest()
        seen.update((found if self.wide is None else f"{found} {self.image_shape}").encode())
        if self.numbers is not None:
            seen.update(str(tuple(self.numbers.shape)).encode())
            seen.update(self.numbers.numpy().data)
        return str(seen.hexdigest())


@dataclass(frozen=True, eq=False)
class Splits:
    """What is learned from, and what is held out."""

    train: ImageSet
    held_out: ImageSet
    own_split: bool  # True: the data's own; False: a seeded fraction
    skipped: tuple[tuple[str, str], ...]  # (name, reason) of bad files skipped
    variant: str = ""  # which of several versions of a data set it is


def seeded_split(where: str, size: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sorted indices, int64, of the images to learn from and of those held out, at least one of each.

    Raises `DataError` that begins with `where` for fewer than two images.
    """
    if size < 2:
        raise DataError(f"{where}: expected at least 2 images, one to train on and one to hold out, got {size}")
    count = min(max(round(fraction * size), 1), size - 1)
    order = seeded_permutation(size, "held out", seed)
    return order[count:].sort().values, order[:count].sort().values
