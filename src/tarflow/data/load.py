"""The front door of the data room: a source by its name or path becomes tensors of pixels, split in two."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch

from tarflow.data.errors import DataError
from tarflow.data.labels import label_tensors
from tarflow.data.prepared import is_prepared, open_all_prepared, open_prepared
from tarflow.data.records import Part, Source
from tarflow.data.request import Reading, Request
from tarflow.data.sets import ImageSet as ImageSet
from tarflow.data.sets import Splits as Splits
from tarflow.data.sources import open_measured
from tarflow.data.split import check_fraction, own_split, seeded_split
from tarflow.data.streamed import Storage, StreamedSplits, is_streamed, open_streamed
from tarflow.data.value_range import Values
from tarflow.fields import integer
from tarflow.measure import requantize


def load(
    source: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    levels: int | None = None,
    class_names: tuple[str, ...] | None = None,
    held_out_fraction: float = 0.1,
    split_seed: int = 0,
    skip_bad: bool = False,
    storage: Storage = "memory",
    reading: Reading | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """The training and the held-out images of `source`.

    Held out is the data's own validation split, or else its test split; where it has no split, a fraction of the images
    drawn from `split_seed`, at least one (and `held_out_fraction` and `split_seed` are used only there).

    Args:
        source: `digits`, `fashion-mnist`, or the path of a folder of images, of Parquet or of IDX files; of a Parquet,
            IDX or `.npz` file; of one image; or a directory that `tarflow prepare` left, which is mapped, not read, and
            whose split is its own. A known name goes before a path: write `./digits` for the path.
        image_size: a side, or (H, W); other images are scaled until they cover it and cropped to their middle.
            None: the images' own, which must then agree.
        channels: 1 or 3. None: 1 if all images are grey, else 3.
        levels: number of values of a pixel, 2 to 256; the images are requantised where they have another.
            None: their own.
        class_names: the classes a model was trained with; labels are mapped by name. None: the data's own.
        skip_bad: leave out records that cannot be read, and list them in `skipped`, instead of an error.
        storage: "memory"; or "stream", for as many as fit into `streamed.LOADED_BYTES` of a set that does not fit into
            memory, chosen by a seed; or "auto" (see `load_or_stream`).
        reading: the columns of Parquet files, where it is to be others than those that are found; the range of values.
        progress: called with (images decoded, of how many) every few images.

    Raises:
        FileNotFoundError: no such path, nor a known name.
        DataError (a ValueError): one line that names the file or option, what was expected and what was found.
    """
    check_fraction(held_out_fraction)
    request = Request(image_size, channels, levels, class_names, skip_bad, progress, reading or Reading())
    found = load_or_stream(source, request, storage=storage, held_out_fraction=held_out_fraction, split_seed=split_seed)
    if isinstance(found, Splits):
        return found
    return Splits(found.train.loaded(), found.held_out.loaded(), found.own_split, (), found.variant)


def _opened(source: str, request: Request) -> Source:
    """The source, with those of its records that are to be seen."""
    opened = open_measured(source, request.reading)
    if request.only is None:
        return opened
    only = request.only
    chosen = [part.chosen([row for row, name in enumerate(part.names) if name in only]) for part in opened.parts]
    parts = tuple(part for part in chosen if part.names)
    if not parts:
        raise DataError(f"{source}: holds none of the images that are asked for")
    holders = {name.rpartition(":")[0].rpartition("/")[2] for part in parts for name in part.names}
    return dataclasses.replace(opened, parts=parts, files=tuple(f for f in opened.files if f.name in holders))


def _load(source: str, opened: Source, request: Request, held_out_fraction: float, split_seed: int) -> Splits:
    own = own_split(opened)
    sets, skipped = _read(source, opened, own or opened.parts, request)
    if own:
        return Splits(sets[0], sets[1], True, skipped, opened.variant)
    everything = _concatenate(sets)
    train, held_out = map(everything.subset, seeded_split(source, len(everything), held_out_fraction, split_seed))
    return Splits(train, held_out, False, skipped, opened.variant)


def load_or_stream(
    source: str,
    request: Request,
    *,
    storage: Storage,
    held_out_fraction: float,
    split_seed: int,
) -> Splits | StreamedSplits:
    """`load`, or for sets that are to be streamed what decodes its images when they are asked for.

    Args:
        storage: "memory", "stream", or "auto", which streams what would take half of the memory (`streamed`). A
            prepared directory is neither: it is mapped, whatever is asked for but "stream", which is an error.
    """
    check_fraction(held_out_fraction)
    split_seed = integer("split_seed", split_seed)
    if is_prepared(source):
        if storage == "stream":
            raise DataError(f"storage: {source} is prepared, and mapped into memory: leave stream out")
        return open_prepared(source, request)
    opened = _opened(source, request)
    if is_streamed(source, opened, request, storage):
        return open_streamed(source, opened, request, held_out_fraction=held_out_fraction, split_seed=split_seed)
    return _load(source, opened, request, held_out_fraction, split_seed)


def load_held_out(
    source: str,
    *,
    image_size: tuple[int, int],
    channels: int,
    levels: int,
    class_names: tuple[str, ...] | None = None,
    held_out_fraction: float,
    split_seed: int,
    skip_bad: bool = False,
    storage: Storage = "memory",
    reading: Reading | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """`load(…).held_out`, without decoding what is trained on where the data have a split of their own.

    Arguments and errors are those of `load`.
    """
    request = Request(image_size, channels, levels, class_names, skip_bad, progress, reading or Reading())
    opened = None if is_prepared(source) else open_measured(source, request.reading)
    if opened and storage == "stream":
        streamed = open_streamed(source, opened, request, held_out_fraction=held_out_fraction, split_seed=split_seed)
        return streamed.held_out.loaded()
    own = opened and own_split(opened)
    if opened and own:
        return _read(source, opened, own[1:], request)[0][0]
    return load(
        source,
        image_size=image_size,
        channels=channels,
        levels=levels,
        class_names=class_names,
        held_out_fraction=held_out_fraction,
        split_seed=split_seed,
        skip_bad=skip_bad,
        reading=reading,
        progress=progress,
    ).held_out


def load_all(
    source: str,
    *,
    image_size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    levels: int | None = None,
    class_names: tuple[str, ...] | None = None,
    skip_bad: bool = False,
    reading: Reading | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageSet, tuple[tuple[str, str], ...]]:
    """Every image of every split of `source` (training, validation, test), and (name, reason) of those skipped.

    Arguments and errors are those of `load`.
    """
    request = Request(image_size, channels, levels, class_names, skip_bad, progress, reading or Reading())
    if is_prepared(source):
        return open_all_prepared(source, request), ()
    opened = open_measured(source, request.reading)
    sets, skipped = _read(source, opened, opened.parts, request)
    return _concatenate(sets), skipped


def _read(
    where: str, source: Source, parts: Sequence[Part], request: Request
) -> tuple[list[ImageSet], tuple[tuple[str, str], ...]]:
    """Decode `parts` of `source` as requested: a set each, all of one image shape, levels and classes."""
    from tarflow.data.assemble import Stack, assemble

    stacks, skipped = assemble(
        parts,
        where,
        levels=source.levels,
        image_size=request.size,
        channels=request.channels,
        values=Values(source.value_range),
        skip_bad=request.skip_bad,
        progress=request.progress,
        new_stack=lambda part: Stack(len(part.names)),
    )
    labels, class_names = label_tensors(where, source, parts, [stack.kept for stack in stacks], request.class_names)
    levels = request.levels or source.levels
    sets = []
    for part, stack, label in zip(parts, stacks, labels, strict=True):
        images = torch.from_numpy(stack.images[: len(stack.kept)])
        if levels != source.levels:
            images = requantize(images, source.levels, levels)
        sets.append(ImageSet(images, label, tuple(part.names[i] for i in stack.kept), levels, class_names))
    return sets, tuple(skipped)


def _concatenate(sets: Sequence[ImageSet]) -> ImageSet:
    if len(sets) == 1:
        return sets[0]
    labels = [s.labels for s in sets if s.labels is not None]
    return ImageSet(
        torch.cat([s.images for s in sets]),
        torch.cat(labels) if labels else None,
        tuple(name for s in sets for name in s.names),
        sets[0].levels,
        sets[0].class_names,
    )
