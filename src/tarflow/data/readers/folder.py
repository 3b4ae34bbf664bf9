"""A folder of images, with class folders or without, with split folders or without; and single image files."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

from tarflow.data.errors import DataError, DataWarning
from tarflow.data.images import SUFFIXES
from tarflow.data.names import Named, composed, few, named_split
from tarflow.data.options import LoadOptions
from tarflow.data.readers.imagenet import oord_variant
from tarflow.data.records import SPLIT_ORDER, Records, Source, Split

_NO_PICTURES = frozenset(  # suffixes of what lies beside images and was hardly meant to be one
    {".txt", ".md", ".rst", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".log"}
    | {".html", ".htm", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".db", ".py", ".ipynb", ".sh", ".lock", ".sha256"}
    | {".md5", ".lnk", ".url", ".pt", ".pth", ".safetensors", ".css", ".js", ".svg", ".bib", ".tex", ".aux"}
)


def claims(source: str) -> bool:
    """A folder, or a file with the suffix of an image."""
    return Path(source).is_dir() or Path(source).suffix.lower() in SUFFIXES


def open_folder(source: str, options: LoadOptions | None = None) -> Source:
    """One image file; or every image under a folder, sorted, and named by its path from there.

    - `root/*.png`: no labels.
    - `root/CLASS/**/*.png`: the folders that hold images, sorted, are the classes.
    - `root/train/` beside `val/` or `test/`, or other words for these, in any case and with the same words around them
      (`names`): splits, each like one of the above. A folder of such a name that is alone is a split, too, and
      no class.

    Hidden files and folders are left out. Links are followed, but not in circles. Raises `DataError` naming the folder:
    no images; images beside class folders or split folders; two folders for one split; a class that the training images
    lack.
    """
    root = Path(source)
    if root.is_file():
        return Source((Records("all", [root.name], None, lambda rows: (root for _ in rows)),))
    others = Counter[str]()
    names = list(image_names(root, others))
    left_out = Counter({kind: count for kind, count in others.items() if kind})
    kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common(8))
    if not names:
        raise DataError(
            f"{root}: holds no images ({others.total()} other files{f', {kinds}' if kinds else ''}; "
            f"known suffixes: {' '.join(sorted(SUFFIXES))})"
        )
    if count := left_out.total():
        files = f"{count} file{'s'[: count > 1]}"
        warnings.warn(f"{root}: left out: {files} not read ({kinds})", DataWarning, stacklevel=2)
    if options is not None and options.unlabelled:
        return Source((_records("all", root, names, None),))
    folders = _split_folders(root, names)
    inside = {
        split: [name for name in names if name.split("/", 1)[0] == folders[split]]
        for split in sorted(folders, key=SPLIT_ORDER.index)
    } or {"all": names}
    labels = {split: _labels(some, root / folders.get(split, ""), int(bool(folders))) for split, some in inside.items()}
    classes = tuple(sorted(set(labels.get("train") or ())))
    for split, own in labels.items():
        unseen = sorted(set(own or ()) - set(classes))
        if unseen and classes:
            raise DataError(
                f"{root / folders[split]}: class folder {unseen[0]!r} has no counterpart in {folders['train']}/"
            )
    classes = classes or tuple(sorted({name for own in labels.values() for name in own or ()}))
    numbers = {name: k for k, name in enumerate(classes)}
    parts = tuple(
        _records(split, root, some, None if (own := labels[split]) is None else [numbers[name] for name in own])
        for split, some in inside.items()
    )
    return Source(parts, classes or None, variant=oord_variant(folders.values()))


def image_names(root: Path, others: Counter[str] | None = None) -> Iterator[str]:
    """The images under `root`, sorted, by their paths from there, found as they are asked for.

    `others` counts the files that are none, those that may have been meant to be by their suffix, the rest under "".
    """
    return _walk(root, "", frozenset({_identity(root)}), Counter() if others is None else others)


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def is_run(names: Collection[str]) -> bool:
    """Whether a folder with these names in it is a run of ours."""
    return "config.json" in names and ("checkpoints" in names or "model.safetensors" in names)


def _walk(root: Path, here: str, above: frozenset[tuple[int, int]], others: Counter[str]) -> Iterator[str]:
    """Every image under `root/here`, sorted by the parts of its path.

    `above` is the identity of that folder and of all it lies in: a link to where we come from would never end. A run,
    whose sample sheets are no data, is left out, unless it is what was asked for.
    """
    with os.scandir(root / here) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries]  # links are followed
    if here and is_run({name for name, _ in found}):
        return
    for name, is_folder in sorted(
        found, key=lambda entry: (composed(entry[0]), entry[0])
    ):  # as another system lists it
        path, relative = os.path.join(root, here, name), f"{here}/{name}" if here else name
        if is_folder:
            if not name.startswith(".") and (identity := _identity(path)) not in above:
                yield from _walk(root, relative, above | {identity}, others)
        # A broken link is a bad file, a pipe is none.
        elif is_image_name(name) and (os.path.isfile(path) or os.path.islink(path)):
            yield relative
        else:
            others[_kind(name)] += 1


def _kind(name: str) -> str:
    """What is said of a file that is left out; "" where it was hardly meant to be an image."""
    suffix = os.path.splitext(name)[1].lower()
    usual = (
        name.startswith(".") or suffix in _NO_PICTURES | SUFFIXES or (not suffix and name.isalpha() and name.isupper())
    )
    return "" if usual else suffix or "without a suffix"


def _split_folders(root: Path, names: Sequence[str]) -> dict[Split, str]:
    """The folders under `root` that are splits; none where they are classes, or there are none.

    They are splits where their templates agree (`names`), and classes where none is a training folder beside one
    held out and other folders hold images too. Where it could be either that is an error.
    """
    _check_inside(root, names)
    holders = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    found = [named for name in holders if (named := named_split(name))]
    alike: dict[str, list[Named]] = {}
    for named in found:
        alike.setdefault(named.template, []).append(named)
    several = [group for group in alike.values() if len({named.split for named in group}) > 1]
    if len(found) < len(holders):  # a class may be called train
        several = [group for group in several if any(named.split == "train" for named in group)]
    splits = [named for group in several for named in group]
    if not splits and len(found) == len(holders):
        others = [named for named in found if named.split != found[0].split]
        if others:
            raise DataError(
                f"{root}: {found[0].name}/ and {others[0].name}/ may be splits or classes: expected names that differ "
                "in nothing else, as train/ and test/, or that speak of no split"
            )
        splits = found if len(alike) == 1 else []  # test-strips, test-tubes
    if not splits:
        for named in found:
            if named.template == "*" and len(holders) == 2:
                said = f"{root}: {named.name}/ is taken for a class, not for a split, as the folder beside it is none"
                warnings.warn(said, DataWarning, stacklevel=3)
        return {}
    listed = ", ".join(named.name for named in splits)
    if beside := sorted(set(holders) - {named.name for named in splits}):
        raise DataError(f"{root}: images in {beside[0]}/ beside the split folders {listed}: expected them in those")
    if loose := [name for name in names if "/" not in name]:
        raise DataError(f"{root}: images beside the split folders {listed} ({loose[0]}): expected them inside")
    for one, other in itertools.combinations(splits, 2):
        if one.split == other.split:
            raise DataError(
                f"{root}: {one.name}/ and {other.name}/ are both the {one.split} split: expected one of them"
            )
    for entry in sorted(root.iterdir()):
        empty = named_split(entry.name) if entry.is_dir() and entry.name not in holders else None
        if empty is not None and empty.template in alike and not entry.name.startswith("."):
            raise DataError(f"{entry}: holds no images")
    return {named.split: named.name for named in splits}


def _check_inside(root: Path, names: Sequence[str]) -> None:
    """Raise `DataError` where a folder that is no split holds some: `root/bottle/train` would be trained on, and
    `root/bottle/test` too."""
    folders: dict[PurePosixPath, set[str]] = {}
    for parent in map(PurePosixPath, {name.rpartition("/")[0] for name in names}):
        for folder in (parent, *parent.parents):
            if len(folder.parts) > 1:
                folders.setdefault(folder.parent, set()).add(folder.name)
    for folder, inside in sorted(folders.items()):
        for one, other in itertools.permutations(filter(None, map(named_split, sorted(inside))), 2):
            if one.split == "train" and other.split != "train" and one.template == other.template:
                raise DataError(
                    f"{root / folder}: holds the splits {one.name}/ and {other.name}/: give it by its own path, or put "
                    f"the splits at the top, {root / one.name}/{folder}/ and so on"
                )


def _labels(names: Sequence[str], root: Path, depth: int) -> list[str] | None:
    """The class of each image: the name of its folder, `depth` below where the names start."""
    folders = [name.split("/")[depth:-1] for name in names]
    loose = sum(not some for some in folders)
    if loose == len(names):
        return None
    if loose:
        classes = sorted({composed(some[0]) for some in folders if some})
        raise DataError(
            f"{root}: {loose} images lie beside the class folders {few(classes, 3)}: "
            "expected all images inside of them, or no folders"
        )
    return [composed(some[0]) for some in folders]


def _records(split: Split, root: Path, names: list[str], labels: list[int] | None) -> Records:
    return Records(split, names, labels, lambda rows: (root / names[row] for row in rows))


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
