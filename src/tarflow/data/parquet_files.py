"""Which Parquet files a folder holds, and which split each belongs to, by its name or that of the folder it is in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tarflow.data.errors import DataError
from tarflow.data.records import Split
from tarflow.data.split_names import split_of


def find_parquet(root: Path) -> list[Path]:
    """The Parquet files in `root`, or else in `root/data` (a snapshot of the hub), sorted; without those that are
    hidden, as programs leave them (`._part-0.parquet`, `_metadata.parquet`)."""
    for place in (root, root / "data"):
        if files := [path for path in sorted(place.glob("*.parquet")) if not _hidden(path.name) and path.is_file()]:
            return files
    return []


def find_parquet_below(root: Path) -> list[Path]:
    """Those anywhere below `root`, as the hub's converted copies have them."""
    found = []
    for folder, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not _hidden(name))
        found += [Path(folder, name) for name in names if name.endswith(".parquet") and not _hidden(name)]
    return sorted(found)


def by_split(root: Path, files: Sequence[Path]) -> dict[Split, list[Path]]:
    """The files of each split; all of them as "all" where no name speaks of one.

    The hub's converted copies are `CONFIG/SPLIT/0000.parquet`. Raises `DataError` naming the file: some names speak of
    a split and some do not; a file of another split than its folder; several sets; partitions by the value of a column.
    """
    groups: dict[Split, list[Path]] = {}
    places: dict[Path, Path] = {}
    split_by_file = {path: _split(root, path, places) for path in files}
    named = [path for path, split in split_by_file.items() if split]
    unnamed = [path for path, split in split_by_file.items() if not split]
    if named and unnamed:
        raise DataError(
            f"{unnamed[0]}: expected a name that begins with train-, validation- or test-, "
            f"as has {named[0].name} beside it"
        )
    if len(places) > 1:
        first, second = list(places)[:2]
        raise DataError(f"{root}: holds several sets, as in {first} and in {second}: give the path of one of them")
    for path, split in split_by_file.items():
        groups.setdefault(split or "all", []).append(path)
    return groups


def _split(root: Path, path: Path, places: dict[Path, Path]) -> Split | None:
    """Of one file; where it lies but for its split goes into `places`, with the first such file."""
    folders = path.relative_to(root).parts[:-1]
    partition = next((part for part in folders if "=" in part), None)
    if partition is not None:
        raise DataError(
            f"{path}: in a partition by the value of a column ({partition}), which is not read: write it anew"
        )
    by_folder = {part: split for part in folders if (split := split_of(part))}
    splits = set(by_folder.values())
    own = split_of(path.name.removesuffix(".parquet"))
    if len(splits | ({own} if own else set())) > 1:
        raise DataError(f"{path}: its name and its folders speak of several splits: expected one")
    places.setdefault(root.joinpath(*(part for part in folders if part not in by_folder)), path)
    return own or next(iter(splits), None)


def _hidden(name: str) -> bool:
    return name.startswith((".", "_"))
