"""A folder of images, with class folders or without, with split folders or without; and single image files."""

from __future__ import annotations

import functools
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tarflow.data.errors import DataError, DataWarning
from tarflow.data.imagenet import oord_variant
from tarflow.data.images import SUFFIXES
from tarflow.data.labels import composed
from tarflow.data.records import SPLIT_ORDER, Group, Part, Source, Split
from tarflow.data.split_names import named_split, split_folders, splits_inside

_GROUP = 64  # files that a stream opens one after the other
_NO_PICTURES = frozenset(  # suffixes of what lies beside images and was hardly meant to be one
    {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log"}
    | {".html", ".htm", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".db", ".py", ".ipynb", ".sh", ".lock", ".sha256"}
    | {".md5", ".lnk", ".url", ".pt", ".pth", ".safetensors", ".css", ".js", ".svg", ".bib", ".tex", ".aux"}
)


def open_folder(root: Path) -> Source:
    """Every image under `root`, sorted, and named by its path from `root`; hidden files and folders are left out.

    - `root/*.png`: no labels.
    - `root/CLASS/**/*.png`: the folders that hold images, sorted, are the classes.
    - `root/train/` beside `val/` or `test/`, or other words for these, in any case and with the same words around them
      (`split_names`): splits, each like one of the above. A folder of such a name that is alone is a split, too, and
      no class.

    Links are followed, but not in circles. Raises `DataError` naming the folder: no images; images beside class folders
    or split folders; two folders for one split; a class that the training images lack.
    """
    paths, others = _scan(root)
    if not paths:
        kinds = others.kinds()
        raise DataError(
            f"{root}: holds no images ({others.count} other files{f', {kinds}' if kinds else ''}; "
            f"known suffixes: {' '.join(sorted(SUFFIXES))})"
        )
    others.say(root)
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


@dataclass
class Others:
    """What a folder holds besides its images: files that are hidden or no images."""

    count: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)  # of those that may hold images

    def add(self, name: str) -> None:
        """One more file."""
        self.count += 1
        suffix = os.path.splitext(name)[1].lower()
        if (
            not name.startswith(".")
            and suffix not in _NO_PICTURES | SUFFIXES
            and (suffix or not (name.isalpha() and name.isupper()))
        ):
            self.suffixes[suffix or "without a suffix"] += 1

    def kinds(self) -> str:
        """How many there are of which kind; "" where none of them may hold images."""
        return ", ".join(f"{count} {suffix}" for suffix, count in self.suffixes.most_common(8))

    def say(self, root: Path) -> None:
        """A `DataWarning` of what is left out and may have been meant."""
        if self.suffixes:
            count = sum(self.suffixes.values())
            warnings.warn(
                f"{root}: left out: {count} file{'s'[: count > 1]} not read ({self.kinds()})", DataWarning, stacklevel=3
            )


def image_paths(root: Path, others: Others | None = None) -> Iterator[PurePosixPath]:
    """The images under `root`, sorted, by their paths from there, found as they are asked for; and what else there is.

    In memory are the names of one folder at a time, and of those above it. Classes and splits mean nothing here.
    """
    return _walk(root, PurePosixPath(), frozenset({_identity(root)}), Others() if others is None else others)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _scan(root: Path) -> tuple[list[PurePosixPath], Others]:
    """The images under `root`, sorted, by their paths from there; and what else there is."""
    others = Others()
    return list(image_paths(root, others)), others


def _walk(
    root: Path, here: PurePosixPath, above: frozenset[tuple[int, int]], others: Others
) -> Iterator[PurePosixPath]:
    """Every image under `root/here`, sorted by the parts of its path; other files are counted.

    `above` is the identity of that folder and of all it lies in: a link to where we come from would never end. A run,
    whose sample sheets are no data, is left out, unless it is what was asked for.
    """
    with os.scandir(root / here) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries]  # links are followed
    listed = sorted(found, key=lambda entry: (composed(entry[0]), entry[0]))  # as another system lists a copy of it
    if here.parts and is_run({name for name, _ in listed}):
        return
    for name, is_folder in listed:
        path = os.path.join(root, here, name)
        if is_folder:
            identity = _identity(path)
            if not name.startswith(".") and identity not in above:
                yield from _walk(root, here / name, above | {identity}, others)
        # A broken link is a bad file, a pipe is none.
        elif is_image_name(name) and (os.path.isfile(path) or os.path.islink(path)):
            yield here / name
        else:
            others.add(name)


def is_run(names: Collection[str]) -> bool:
    """Whether a folder with these names in it is a run of ours."""
    return "config.json" in names and ("checkpoints" in names or "model.safetensors" in names)


def _split_folders(root: Path, paths: Sequence[PurePosixPath]) -> dict[Split, str]:
    """The folders under `root` that are splits; none where they are classes, or there are none."""
    holders = {path.parts[0] for path in paths if len(path.parts) > 1}
    _check_inside(root, paths)
    splits = split_folders(str(root), holders)
    if not splits:
        for name in sorted(holders):
            if (named := named_split(name)) is not None and named.template == "*" and len(holders) == 2:
                warnings.warn(
                    f"{root}: {name}/ is taken for a class, not for a split, as the folder beside it is none",
                    DataWarning,
                    stacklevel=2,
                )
        return {}
    names = ", ".join(named.name for named in splits)
    loose = [path for path in paths if len(path.parts) == 1]
    if loose:
        raise DataError(f"{root}: images beside the split folders {names} ({loose[0]}): expected them inside")
    templates = {named.template for named in splits}
    for entry in sorted(root.iterdir()):
        empty = named_split(entry.name) if entry.is_dir() and entry.name not in holders else None
        if empty is not None and empty.template in templates and not entry.name.startswith("."):
            raise DataError(f"{entry}: holds no images")
    return {named.split: named.name for named in splits}


def _check_inside(root: Path, paths: Iterable[PurePosixPath]) -> None:
    """Raise `DataError` where a folder that is no split holds some: `root/bottle/train` would be trained on, and
    `root/bottle/test` too."""
    folders: dict[PurePosixPath, set[str]] = {}
    for parent in {path.parent for path in paths}:
        for folder in (parent, *parent.parents):
            if len(folder.parts) > 1:
                folders.setdefault(folder.parent, set()).add(folder.name)
    for folder, names in sorted(folders.items()):
        if (found := splits_inside(sorted(names))) is not None:
            raise DataError(
                f"{root / folder}: holds the splits {found[0]}/ and {found[1]}/: give it by its own path, or put the "
                f"splits at the top, {root / found[0]}/{folder}/ and so on"
            )


def _label(paths: Iterable[PurePosixPath], root: Path, depth: int) -> tuple[list[str] | None, tuple[str, ...]]:
    """The class of each image, the name of its folder `depth` below where paths start, or None; and all classes."""
    names = [composed(path.parts[depth]) if len(path.parts) > depth + 1 else None for path in paths]
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
