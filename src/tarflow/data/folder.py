"""A folder of images, with class folders or without, with split folders or without; and single image files."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from tarflow.data.errors import DataError
from tarflow.data.imagenet import oord_variant
from tarflow.data.images import SUFFIXES
from tarflow.data.records import SPLIT_ORDER, Group, Part, Source, Split, split_of

_GROUP = 64  # files that a stream opens one after the other


def open_folder(root: Path) -> Source:
    """Every image under `root`, sorted, and named by its path from `root`; hidden files and folders are left out.

    - `root/*.png`: no labels.
    - `root/CLASS/**/*.png`: the folders that hold images, sorted, are the classes.
    - `root/train/` beside `val/` (or `valid/`, `validation/`) or `test/`, in any case: splits, each like one of the
      above. A folder of such a name that is alone is a split, too, and no class.

    Links are followed, but not in circles. Raises `DataError` naming the folder: no images; images beside class folders
    or split folders; two folders for one split; a class that the training images lack.
    """
    paths, ignored = _scan(root)
    if not paths:
        raise DataError(
            f"{root}: holds no images ({ignored} other files; known suffixes: {' '.join(sorted(SUFFIXES))})"
        )
    folders = _split_folders(root, paths)
    if not folders:
        labels, classes = _label(paths, root, depth=0)
        return Source((_part("all", root, paths, labels, classes),), classes or None)

    labelled = {}
    for split in sorted(folders, key=SPLIT_ORDER.index):
        inside = [path for path in paths if path.parts[0] == folders[split]]
        labelled[split] = (inside, *_label(inside, root / folders[split], depth=1))
    classes = labelled["train"][2] if "train" in labelled else ()
    for split, (_, labels, names) in labelled.items():
        unseen = sorted(set(names) - set(classes))
        if unseen and labels and classes:
            raise DataError(
                f"{root / folders[split]}: class folder {unseen[0]!r} has no counterpart in {folders['train']}/"
            )
    classes = classes or tuple(sorted({name for _, _, names in labelled.values() for name in names}))
    parts = [_part(split, root, inside, labels, classes) for split, (inside, labels, _) in labelled.items()]
    return Source(tuple(parts), classes or None, variant=oord_variant(folders.values()))


def open_image(path: Path) -> Source:
    """One image file, without a label."""
    return Source((Part("all", [path.name], None, lambda: iter([path])),))


def image_paths(root: Path) -> Iterator[PurePosixPath]:
    """The images under `root`, sorted, by their paths from there, found as they are asked for.

    In memory are the names of one folder at a time, and of those above it. Classes and splits mean nothing here.
    """
    return (path for path, is_image in _walk(root, PurePosixPath(), frozenset({_identity(root)})) if is_image)


def _scan(root: Path) -> tuple[list[PurePosixPath], int]:
    """The images under `root`, sorted, by their paths from there; and how many files are hidden or no images."""
    found: list[PurePosixPath] = []
    ignored = 0
    for path, is_image in _walk(root, PurePosixPath(), frozenset({_identity(root)})):
        if is_image:
            found.append(path)
        else:
            ignored += 1
    return found, ignored


def _walk(root: Path, here: PurePosixPath, above: frozenset[tuple[int, int]]) -> Iterator[tuple[PurePosixPath, bool]]:
    """Every file under `root/here`, sorted by the parts of its path, and whether it is an image.

    `above` is the identity of that folder and of all it lies in: a link to where we come from would never end.
    """
    with os.scandir(root / here) as entries:
        listed = sorted((entry.name, entry.is_dir()) for entry in entries)  # links are followed
    for name, is_folder in listed:
        path = os.path.join(root, here, name)
        if is_folder:
            identity = _identity(path)
            if not name.startswith(".") and identity not in above:
                yield from _walk(root, here / name, above | {identity})
        else:
            is_image = not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES
            # A broken link is a bad file, a pipe is none.
            yield here / name, is_image and (os.path.isfile(path) or os.path.islink(path))


def _split_folders(root: Path, paths: Sequence[PurePosixPath]) -> dict[Split, str]:
    """The folders under `root` that are splits; none where they are classes, or there are none."""
    holders = {path.parts[0] for path in paths if len(path.parts) > 1}
    named = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and split_of(entry.name))
    kinds = {split_of(name) for name in named}
    others = sorted(holders - set(named))
    if not kinds or (others and not ("train" in kinds and len(kinds) > 1)):  # a class may be called train
        return {}
    if others:
        raise DataError(
            f"{root}: images in {others[0]}/ beside the split folders {', '.join(named)}: expected them in those"
        )
    loose = [path for path in paths if len(path.parts) == 1]
    if loose:
        raise DataError(
            f"{root}: images beside the split folders {', '.join(named)} ({loose[0]}): expected them inside"
        )
    folders: dict[Split, str] = {}
    for name in named:
        split = split_of(name)
        assert split is not None
        if split in folders:
            raise DataError(f"{root}: {folders[split]}/ and {name}/ are both the {split} split: expected one of them")
        if name not in holders:
            raise DataError(f"{root / name}: holds no images")
        folders[split] = name
    return folders


def _label(paths: Iterable[PurePosixPath], root: Path, depth: int) -> tuple[list[str] | None, tuple[str, ...]]:
    """The class of each image, the name of its folder `depth` below where paths start, or None; and all classes."""
    names = [path.parts[depth] if len(path.parts) > depth + 1 else None for path in paths]
    classes = tuple(sorted({name for name in names if name is not None}))
    if not classes:
        return None, ()
    if None in names:
        raise DataError(
            f"{root}: {names.count(None)} images lie beside the class folders {_few(classes)}: "
            "expected all images inside of them, or no folders"
        )
    return [name for name in names if name is not None], classes


def _part(
    split: Split, root: Path, paths: Sequence[PurePosixPath], labels: list[str] | None, classes: Sequence[str]
) -> Part:
    index = {name: i for i, name in enumerate(classes)}
    numbers = None if labels is None else [index[name] for name in labels]
    groups = tuple(
        Group(len(some), functools.partial(_absolute, root, some))
        for some in (paths[k : k + _GROUP] for k in range(0, len(paths), _GROUP))
    )

    def choose(rows: Sequence[int]) -> Part:
        some = None if labels is None else [labels[row] for row in rows]
        return _part(split, root, [paths[row] for row in rows], some, classes)

    names = [str(path) for path in paths]
    return Part(split, names, numbers, lambda: (root / path for path in paths), groups, choose)


def _absolute(root: Path, paths: Sequence[PurePosixPath]) -> Sequence[Path]:
    return [root / path for path in paths]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
