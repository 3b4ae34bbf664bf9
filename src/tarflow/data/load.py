"""The front door of the data room: a source by its name or path becomes tensors of pixels, split in two."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tarflow.data.batches import seeded_permutation
from tarflow.data.errors import DataError
from tarflow.data.labels import label_tensors
from tarflow.data.pixels import check_levels, requantize
from tarflow.data.records import Part, Source

KNOWN_NAMES = ("digits", "fashion-mnist")


@dataclass(frozen=True, eq=False)  # equality of tensors is no truth value
class ImageSet:
    """Images with their labels and names, in memory."""

    images: Tensor  # (N, C, H, W) uint8, 0..levels-1
    labels: Tensor | None  # (N,) int64, an index into class_names
    names: tuple[str, ...]  # one an image: relative path, "file.parquet:row", "digits:17"
    levels: int
    class_names: tuple[str, ...]  # empty where there are no labels

    def __post_init__(self) -> None:
        assert self.images.ndim == 4 and self.images.dtype == torch.uint8, (self.images.shape, self.images.dtype)
        assert len(self.names) == len(self.images)
        assert self.labels is None or (self.labels.shape == (len(self.images),) and self.labels.dtype == torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The images at `indices`, in that order, copied."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        labels = None if self.labels is None else self.labels[chosen]
        names = tuple(self.names[i] for i in chosen.tolist())
        return ImageSet(self.images[chosen], labels, names, self.levels, self.class_names)

    def choice(self, count: int, seed: int) -> ImageSet:
        """At most `count` of the images, chosen by `seed`, in their order: the first ones may all be of one class."""
        chosen = seeded_permutation(len(self), "choice", seed)[:count]
        return self.subset(chosen.sort().values)


@dataclass(frozen=True, eq=False)
class Splits:
    """What is learned from, and what is held out."""

    train: ImageSet
    held_out: ImageSet
    own_split: bool  # True: the data's own; False: a seeded fraction
    skipped: tuple[tuple[str, str], ...]  # (name, reason) of bad files skipped


@dataclass(frozen=True)
class _Request:
    """What `load` and `load_all` were asked for, checked before anything is read."""

    image_size: int | tuple[int, int] | None
    channels: int | None
    levels: int | None
    class_names: tuple[str, ...] | None
    skip_bad: bool
    progress: Callable[[int, int], None] | None

    def __post_init__(self) -> None:
        size = self.size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise DataError(f"image_size: expected a positive number or (height, width), got {self.image_size}")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels: expected 1 (grey) or 3 (RGB), got {self.channels}")
        if self.levels is not None:
            check_levels(self.levels)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size


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
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """The training and the held-out images of `source`.

    Held out is the data's own validation split, or else its test split; where it has no split, a fraction of the images
    drawn from `split_seed`, at least one (and `held_out_fraction` and `split_seed` are used only there).

    Args:
        source: `digits`, `fashion-mnist`, or the path of a folder of images, of Parquet or of IDX files; of a Parquet,
            IDX or `.npz` file; or of one image. A known name goes before a path: write `./digits` for the path.
        image_size: a side, or (H, W); other images are scaled until they cover it and cropped to their middle.
            None: the images' own, which must then agree.
        channels: 1 or 3. None: 1 if all images are grey, else 3.
        levels: number of values of a pixel, 2 to 256; the images are requantised where they have another.
            None: their own.
        class_names: the classes a model was trained with; labels are mapped by name. None: the data's own.
        skip_bad: leave out records that cannot be read, and list them in `skipped`, instead of an error.
        progress: called with (images decoded, of how many) every few images.

    Raises:
        FileNotFoundError: no such path, nor a known name.
        DataError (a ValueError): one line that names the file or option, what was expected and what was found.
    """
    if not 0 < held_out_fraction < 1:
        raise DataError(f"held_out_fraction: expected a number between 0 and 1, got {held_out_fraction}")
    request = _Request(image_size, channels, levels, class_names, skip_bad, progress)
    opened = open_source(source)
    by_split = {part.split: part for part in opened.parts}
    held_out = by_split.get("validation") or by_split.get("test")
    own_split = "train" in by_split and held_out is not None
    chosen = [by_split["train"], held_out] if own_split and held_out else opened.parts
    sets, skipped = _read(source, opened, chosen, request)
    if own_split:
        return Splits(sets[0], sets[1], True, skipped)
    everything = _concatenate(sets)
    size = len(everything)
    if size < 2:
        raise DataError(f"{source}: expected at least 2 images, one to train on and one to hold out, got {size}")
    count = min(max(round(held_out_fraction * size), 1), size - 1)
    order = seeded_permutation(size, "held out", split_seed)
    held_out_set, train = (everything.subset(part.sort().values) for part in (order[:count], order[count:]))
    return Splits(train, held_out_set, False, skipped)


def load_held_out(
    source: str,
    *,
    image_size: tuple[int, int],
    channels: int,
    levels: int,
    held_out_fraction: float,
    split_seed: int,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """`load(…).held_out`, without decoding what is trained on where the data have a split of their own.

    Arguments and errors are those of `load`.
    """
    opened = open_source(source)
    by_split = {part.split: part for part in opened.parts}
    part = by_split.get("validation") or by_split.get("test")
    if "train" in by_split and part is not None:
        request = _Request(image_size, channels, levels, None, skip_bad, progress)
        return _read(source, opened, [part], request)[0][0]
    return load(
        source,
        image_size=image_size,
        channels=channels,
        levels=levels,
        held_out_fraction=held_out_fraction,
        split_seed=split_seed,
        skip_bad=skip_bad,
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
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ImageSet, tuple[tuple[str, str], ...]]:
    """Every image of every split of `source` (training, validation, test), and (name, reason) of those skipped.

    Arguments and errors are those of `load`.
    """
    request = _Request(image_size, channels, levels, class_names, skip_bad, progress)
    opened = open_source(source)
    sets, skipped = _read(source, opened, opened.parts, request)
    return _concatenate(sets), skipped


def open_source(source: str) -> Source:
    """Find out what `source` is, and scan it; nothing is decoded yet."""
    if source == "digits":
        from tarflow.data.digits import open_digits

        return open_digits()
    from tarflow.data import idx

    if source == "fashion-mnist":
        return idx.open_fashion_mnist()
    path = Path(source).expanduser()
    if not source or not path.exists():
        near = difflib.get_close_matches(source, KNOWN_NAMES, 1)
        hint = f"; perhaps {near[0]}?" if near else ""
        raise FileNotFoundError(f"{source!r}: no such path, nor one of the known names {', '.join(KNOWN_NAMES)}{hint}")
    return _open_folder(path) if path.is_dir() else _open_file(path)


def is_folder_of_images(source: str) -> bool:
    """Whether `source` is a folder whose files are images, one each, and not Parquet or IDX files, or a known name."""
    from tarflow.data import idx

    path = Path(source).expanduser()
    if not source or source in KNOWN_NAMES or not path.is_dir() or _parquet_files(path):
        return False
    return not any(idx.is_idx_images(file) for file in path.iterdir())


def _open_folder(path: Path) -> Source:
    from tarflow.data import folder, idx, parquet

    if files := _parquet_files(path):
        return parquet.open_parquet_files(files)
    if any(idx.is_idx_images(file) for file in path.iterdir()):
        return idx.open_idx_folder(path)
    return folder.open_folder(path)


def _parquet_files(path: Path) -> list[Path]:
    for place in (path, path / "data"):  # a snapshot of a data set of the hub has its files in data/
        if files := sorted(place.glob("*.parquet")):
            return files
    return []


def _open_file(path: Path) -> Source:
    from tarflow.data import folder, idx, npz, parquet
    from tarflow.data.images import SUFFIXES

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet.open_parquet_file(path)
    if suffix == ".npz":
        return npz.open_npz(path)
    if idx.is_idx_images(path):
        return idx.open_idx_file(path)
    if suffix in SUFFIXES:
        return folder.open_image(path)
    raise DataError(
        f"{path}: expected a folder, .parquet, .npz, IDX images (*-images-idx3-ubyte[.gz]) or an image file"
    )


def _read(
    where: str, source: Source, parts: Sequence[Part], request: _Request
) -> tuple[list[ImageSet], tuple[tuple[str, str], ...]]:
    """Decode `parts` of `source` as requested: a set each, all of one image shape, levels and classes."""
    from tarflow.data.assemble import assemble

    stacks, skipped = assemble(
        parts,
        where,
        levels=source.levels,
        image_size=request.size,
        channels=request.channels,
        skip_bad=request.skip_bad,
        progress=request.progress,
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
