"""A set that does not fit into memory: its labels and names do, its images are decoded when they are asked for."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from tarflow.data.assemble import THREADS, in_order, read_one
from tarflow.data.batches import seeded_permutation
from tarflow.data.decode import Spec
from tarflow.data.errors import DataError
from tarflow.data.fingerprint import places_digest
from tarflow.data.labels import label_tensors
from tarflow.data.records import Group, Part, Source
from tarflow.data.request import Request
from tarflow.data.sets import ImageSet
from tarflow.data.split import own_split, seeded_split
from tarflow.data.value_range import Values
from tarflow.measure import requantize

Storage: TypeAlias = Literal["auto", "memory", "stream"]

MEMORY_SHARE = 0.5  # of the machine's memory that images may take before they are streamed
VALUE_PROBES = 4  # the same, where only the range of their values is not known
PROBES = 32  # records that are decoded to learn the shape of all, spread over the set
LOADED_BYTES = 1 << 30  # images of a streamed set that are brought into memory to score or to compare with


class ChosenNames(Sequence[str]):
    """Some of the names of a part."""

    def __init__(self, names: Sequence[str], rows: Tensor) -> None:
        self.names, self.rows = names, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        return self.names[int(self.rows[index])]


@dataclass(frozen=True, eq=False)
class StreamedSet:
    """Images with their labels and names, not in memory.

    Attributes:
        groups: what is read together. rows: (N,) int64, sorted: which records of the groups, counted through, are the
            images of this set. labels: (N,) int64, or None.
        spec: what a record becomes; own levels. levels: those of the images that come out.
        skip_bad: whether a record that cannot be read may be left out.
        files: a digest of the files it comes from.
    """

    source: str
    groups: tuple[Group, ...]
    rows: Tensor
    labels: Tensor | None
    names: Sequence[str]
    spec: Spec
    levels: int
    class_names: tuple[str, ...]
    skip_bad: bool
    files: str

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.spec.shape

    @property
    def starts(self) -> Tensor:
        """Where in `rows` each group begins, and the end: (G + 1,)."""
        ends = torch.tensor([0, *(group.rows for group in self.groups)], device="cpu", dtype=torch.int64).cumsum(0)
        return torch.searchsorted(self.rows, ends)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The images at `indices`, sorted, decoded into memory; without the bad ones where they may be skipped.

        Raises `DataError` naming a bad record otherwise.
        """
        chosen = torch.as_tensor(indices, device="cpu", dtype=torch.int64).sort().values
        starts = self.starts.tolist()
        first = [0, *itertools.accumulate(group.rows for group in self.groups)]
        images, kept = [], []
        with ThreadPoolExecutor(THREADS) as pool:
            for number, group in enumerate(self.groups):
                inside = chosen[(chosen >= starts[number]) & (chosen < starts[number + 1])]
                if not len(inside):
                    continue
                contents = group.read()
                records = [contents[int(self.rows[i]) - first[number]] for i in inside]
                for index, read in zip(inside.tolist(), in_order(pool, self._try, records), strict=True):
                    if isinstance(read, DataError):
                        if not self.skip_bad:
                            raise self.refusal(index, read)
                        continue
                    images.append(read)
                    kept.append(index)
        if not kept:
            raise DataError(f"{self.source}: none of {len(chosen)} images can be read")
        pixels = self.out(torch.stack(images))
        labels = None if self.labels is None else self.labels[torch.tensor(kept, device="cpu", dtype=torch.int64)]
        return ImageSet(pixels, labels, tuple(self.names[i] for i in kept), self.levels, self.class_names)

    def choice(self, count: int, seed: int) -> ImageSet:
        """At most `count` of the images, chosen by `seed`, in their order: as of an `ImageSet`."""
        return self.subset(seeded_permutation(len(self), "choice", seed)[:count])

    def loaded(self) -> ImageSet:
        """As many as `LOADED_BYTES` hold, all or a choice: to score, to compare with, to fit to."""
        channels, height, width = self.image_shape
        return self.choice(max(1, LOADED_BYTES // (channels * height * width)), 0)

    def digest(self) -> str:
        """Of the files (`places_digest`), of labels, split and groups, and of what a record becomes: not of the pixels.

        Whether size and channels were asked for or are the data's own makes no difference: where they are kept with a
        run, they are asked for when it goes on.
        """
        groups = tuple(group.rows for group in self.groups)
        facts = (self.files, groups, self.spec.shape, self.spec.levels, self.levels, self.spec.value_range)
        digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
        digest.update(self.rows.numpy().data)
        if self.labels is not None:
            digest.update(self.labels.numpy().data)
        return digest.hexdigest()

    def out(self, pixels: Tensor) -> Tensor:
        """Decoded pixels with the levels that were asked for."""
        own = self.spec.levels
        return pixels if self.levels == own else requantize(pixels, own, self.levels)

    def refusal(self, index: int, error: DataError) -> DataError:
        """The error of a bad record, with its name."""
        return DataError(f"{self.source}: {self.names[index]}: {error} (skip_bad leaves such images out)")

    def _try(self, content: object) -> Tensor | DataError:
        try:
            pixels = torch.tensor(self.spec.read(content), device="cpu", dtype=torch.uint8)  # type: ignore[arg-type]
        except DataError as error:
            return error
        return pixels.expand(self.image_shape)


@dataclass(frozen=True, eq=False)
class StreamedSplits:
    """What is learned from, and what is held out, of a set that is streamed."""

    train: StreamedSet
    held_out: StreamedSet
    own_split: bool
    variant: str = ""
    skipped: tuple[tuple[str, str], ...] = ()  # they are met, and reported, on the way


def is_streamed(source: str, opened: Source, request: Request, storage: Storage) -> bool:
    """Whether to stream: as `storage` says, or for "auto" where the images would take `MEMORY_SHARE` of the memory.

    Raises `DataError` where "stream" is asked of what cannot be: only Parquet and folders of images are read in groups.
    """
    parts = own_split(opened) or opened.parts
    possible = all(part.groups is not None for part in parts)
    if storage == "stream" and not possible:
        raise DataError(
            f"storage: {source} cannot be streamed, only Parquet files and folders of images are: prepare it"
        )
    if storage != "auto" or not possible or not hasattr(os, "sysconf"):
        return storage == "stream"
    size, channels = request.size, request.channels or 3
    if size is None:
        try:
            channels, *size = probe(source, parts, opened.levels, request, Values(opened.value_range))  # type: ignore[assignment]
        except DataError:
            return False  # whoever reads all of it says best what is wrong
    bytes_needed = sum(len(part.names) for part in parts) * channels * math.prod(size or ())
    return bytes_needed > MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def open_streamed(
    source: str, opened: Source, request: Request, *, held_out_fraction: float, split_seed: int
) -> StreamedSplits:
    """`load` of a set that is streamed: the same split, labels and names; the same pixels, when they are asked for.

    Bad records are met on the way: with `skip_bad` another one takes their place, otherwise they end the run.

    Raises `DataError`: as `load`; an image size or channels that the first images do not agree on.
    """
    own = own_split(opened)
    parts = own or opened.parts
    if own is None and len(parts) > 1:
        names = ", ".join(part.split for part in parts)
        raise DataError(f"{source}: expected a training and a held-out split, or one without a name, got {names}")
    for part in parts:
        if not part.names:
            raise DataError(f"{source}: holds no images")
    values = Values(opened.value_range)
    shape = probe(source, parts, opened.levels, request, values)
    values.say(source)
    spec = Spec(shape, opened.levels, request.size, request.channels, opened.value_range)
    labelled = [replace(part, labels=_known(part, opened.class_names)) for part in parts]
    labels, class_names = label_tensors(
        source, opened, labelled, [range(len(part.names)) for part in parts], request.class_names
    )
    files = places_digest(replace(opened, parts=tuple(parts)))
    levels = request.levels or opened.levels

    def some(number: int, rows: Tensor) -> StreamedSet:
        part, label = parts[number], labels[number]
        assert part.groups is not None
        names = ChosenNames(part.names, rows)
        chosen = None if label is None else label[rows]
        skip = request.skip_bad
        return StreamedSet(source, part.groups, rows, chosen, names, spec, levels, class_names, skip, files)

    if own:
        train, held_out = (
            some(k, torch.arange(len(part.names), device="cpu", dtype=torch.int64)) for k, part in enumerate(parts)
        )
        return StreamedSplits(train, held_out, True, opened.variant)
    split = seeded_split(source, len(parts[0].names), held_out_fraction, split_seed)
    return StreamedSplits(some(0, split[0]), some(0, split[1]), False, opened.variant)


def probe(
    source: str, parts: Sequence[Part], levels: int, request: Request, values: Values | None = None
) -> tuple[int, int, int]:
    """The shape (C, H, W) that images are to have: as asked for, or as the first image of some groups have it.

    `values` is told the values of those. Raises `DataError` where sizes differ, or none can be read.
    """
    asked = (request.channels, *request.size) if request.size is not None and request.channels is not None else None
    if asked is not None and values is None:
        return asked
    groups = [group for part in parts for group in part.groups or ()]
    step = max(1, len(groups) // (PROBES if asked is None else VALUE_PROBES))
    found, problem = [], "no images"
    for group in groups[::step]:
        for content in group.read():
            try:
                found.append(read_one(content, levels, request.size, request.channels, values).shape)
                break
            except DataError as error:
                problem = str(error)
    if asked is not None:
        return asked
    if not found:
        raise DataError(f"{source}: none of the first images can be read: {problem}")
    sizes = sorted({shape[1:] for shape in found})
    if len(sizes) > 1:
        few = " and ".join(f"{height}x{width}" for height, width in sizes[:2])
        raise DataError(
            f"{source}: holds images of {few} (height x width): give an image size, to which all are scaled"
        )
    return max(shape[0] for shape in found), sizes[0][0], sizes[0][1]


def _known(part: Part, class_names: tuple[str, ...] | None) -> list[int] | None:
    """The labels, with -1 for those that no class has: their records are bad, and say so when they are read."""
    if part.labels is None:
        return None
    top = len(class_names) if class_names else None
    return [label if label >= 0 and (top is None or label < top) else -1 for label in part.labels]
