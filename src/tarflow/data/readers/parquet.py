"""Parquet files in the layout of the Hugging Face `datasets` library: one file, or a folder of them.

Column `image` is a struct with a field `bytes`, or plain bytes: the encoded file. Column `label`, whole numbers, is
optional; the names of the classes are in the schema's metadata under `huggingface`. Columns of other names are found by
`parquet_columns`. Files are of the split that their name, or that of their folder, speaks of. A record's name is
`file.parquet:row`, rows from 0.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarflow.data.errors import DataError, DataWarning, check_unpacked
from tarflow.data.options import LoadOptions
from tarflow.data.readers.folder import image_names
from tarflow.data.readers.imagenet import oord_variant
from tarflow.data.readers.parquet_columns import Columns, choose_columns
from tarflow.data.records import SPLIT_ORDER, Content, Location, Records, Source, Split, records_in_files, rows_within
from tarflow.data.split_names import split_of

_BATCH_ROWS = 256  # encoded images held in memory at a time
ATTEMPTS, PAUSE = 4, 1.0  # at reading from far away; seconds before the second, and four times that before the next


@dataclass(frozen=True)
class _File:
    """What the head of a file and its column of labels say."""

    path: Location
    name: str  # that its records have
    metadata: Any  # of Parquet's: read once, which matters where the file is far away
    columns: Columns
    labels: list[int | None] | None


def claims(source: str) -> bool:
    """A file by its suffix; a folder that holds such files, or holds them further down and no images at all."""
    path = Path(source)
    if not path.is_dir():
        return path.suffix.lower() == ".parquet" and path.is_file()
    files = _files(path)
    return bool(files) and (files[0].parent in (path, path / "data") or next(image_names(path), None) is None)


def open_parquet(source: str, options: LoadOptions | None = None) -> Source:
    """One file, without a split of its own; or those of a folder, in their splits, one set where no name tells any."""
    root = Path(source)
    if not root.is_dir():
        return open_splits({"all": [root]}, options)
    files = _files(root)
    return open_splits(_by_split(root, files), options, Path(os.path.commonpath([path.parent for path in files])))


def open_splits(
    groups: Mapping[Split, Sequence[Location]], options: LoadOptions | None = None, place: Path | None = None
) -> Source:
    """The files of each split, in this order; names begin at `place`, or are those of the files alone.

    Files without a row, as Spark leaves them, say nothing. Raises `DataError` naming the file that is not like the
    others.
    """
    heads: dict[Split, list[_File]] = {}
    for split in sorted(groups, key=SPLIT_ORDER.index):
        found = [_head(path, options or LoadOptions(), place) for path in groups[split]]
        heads[split] = [head for head in found if head is not None]
        if not heads[split]:
            raise DataError(f"{groups[split][0]}: {'' if split == 'all' else f'the {split} split '}holds no images")
    every = [head for group in heads.values() for head in group]
    for said in dict.fromkeys(head.columns.passed_over for head in every if head.columns.passed_over):
        warnings.warn(f"{every[0].path}: {said}", DataWarning, stacklevel=2)
    first, labelled = every[0], next((head for head in every if head.columns.label), None)
    for head in every:
        columns, others = (f"columns {h.columns.image} and {h.columns.label or 'no label'}" for h in (head, first))
        if labelled and head.columns.label is None:
            raise DataError(f"{head.path}: has no labels, but {labelled.path.name} has: expected both to be alike")
        if head.columns.class_names != first.columns.class_names:
            raise DataError(f"{head.path}: its class names differ from those of {first.path.name}")
        if columns != others:
            raise DataError(f"{head.path}: {columns}, and {first.path.name}: {others}: expected the same")
    files = tuple(head.path for head in every)
    parts = tuple(_records(split, group) for split, group in heads.items())
    return Source(parts, first.columns.class_names, files=files, variant=oord_variant([file.name for file in files]))


def _files(root: Path) -> list[Path]:
    """The Parquet files in `root`, or in `root/data` (a snapshot of the hub), or anywhere below (its converted copies).

    Those that are hidden, as programs leave them (`._part-0.parquet`, `_metadata.parquet`), are none.
    """
    for place, pattern in ((root, "*"), (root / "data", "*"), (root, "**/*")):
        found = [
            path
            for path in sorted(place.glob(f"{pattern}.parquet"))
            if not any(part.startswith((".", "_")) for part in path.relative_to(place).parts) and path.is_file()
        ]
        if found:
            return found
    return []


def _by_split(root: Path, files: Sequence[Path]) -> dict[Split, list[Path]]:
    """The files of each split; all of them as "all" where no name speaks of one.

    The hub's converted copies are `CONFIG/SPLIT/0000.parquet`. Raises `DataError` naming the file: some names speak of
    a split and some do not; a file of another split than its folder; several sets; partitions by the value of a column.
    """
    groups: dict[Split, list[Path]] = {}
    sets: dict[Path, Path] = {}  # where files lie but for their split, with the first of each
    for path in files:
        folders = path.relative_to(root).parts[:-1]
        if partition := next((part for part in folders if "=" in part), None):
            what = f"in a partition by the value of a column ({partition})"
            raise DataError(f"{path}: {what}, which is not read: write it anew")
        splits = {split for part in (*folders, path.name.removesuffix(".parquet")) if (split := split_of(part))}
        if len(splits) > 1:
            raise DataError(f"{path}: its name and its folders speak of several splits: expected one")
        sets.setdefault(root.joinpath(*(part for part in folders if not split_of(part))), path)
        groups.setdefault(splits.pop() if splits else "all", []).append(path)
    if "all" in groups and len(groups) > 1:
        named = next(paths[0] for split, paths in groups.items() if split != "all")
        expected = f"a name that begins with train-, validation- or test-, as has {named.name} beside it"
        raise DataError(f"{groups['all'][0]}: expected {expected}")
    if len(sets) > 1:
        one, other = list(sets.items())[:2]
        raise DataError(f"{root}: holds several sets, as in {one[0]} and in {other[0]}: give the path of one of them")
    return groups


def _head(path: Location, options: LoadOptions, place: Path | None) -> _File | None:
    with _open(path) as file:
        metadata = file.metadata
        if metadata.num_rows == 0:
            return None
        if isinstance(path, Path) and metadata.num_rows > (size := path.stat().st_size):
            raise DataError(f"{path}: {metadata.num_rows} rows in {size} bytes: expected an image a row")
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            columns = [group.column(k) for k in range(group.num_columns)]
            packed = sum(column.total_compressed_size for column in columns)
            check_unpacked(str(path), packed, sum(column.total_uncompressed_size for column in columns))
        chosen, labels = choose_columns(file.schema_arrow, options, path), None
        if (label := chosen.label) is not None:
            labels = _read(path, lambda: file.read(columns=[label])[label].to_pylist())
        name = path.relative_to(place).as_posix() if place is not None and isinstance(path, Path) else path.name
        return _File(path, name, metadata, chosen, labels)


def _records(split: Split, files: Sequence[_File]) -> Records:
    # The Hugging Face convention for a test set without labels is -1 in every row.
    labelled = any(label not in (None, -1) for file in files for label in file.labels or ())
    labels = [-1 if x is None else x for file in files for x in file.labels or ()] if labelled else None
    each = [(file.name, file.metadata.num_rows, functools.partial(_contents, file, labelled)) for file in files]
    return records_in_files(split, each, labels)


def _contents(file: _File, labelled: bool, rows: Any) -> Iterator[Content]:
    """The encoded images of these rows of a file, or what is wrong with the record."""
    start = 0
    for number in range(file.metadata.num_row_groups):  # a reader of all keeps the bytes of those it has read
        count = file.metadata.row_group(number).num_rows
        if len(rows_within(rows, start, count)):
            first = start
            for column in _columns(file, number):
                chosen = rows_within(rows, first, len(column))
                data = _bytes(column if len(chosen) == len(column) else column.take(chosen))
                for row, value in zip(chosen, data, strict=True):
                    problem = _label_problem(file, first + int(row)) if labelled else None
                    yield DataError(problem) if problem else value
                first += len(column)
        start += count


def _columns(file: _File, number: int) -> Iterator[Any]:
    """The images of a row group, some at a time. Of what is far away the group is fetched, again if need be."""
    image, here = [file.columns.image], isinstance(file.path, Path)
    for attempt in range(1 if here else ATTEMPTS):
        try:
            with _open(file.path, file.metadata) as opened:
                if here:
                    batches = opened.iter_batches(_BATCH_ROWS, row_groups=[number], columns=image)
                    while (batch := _read(file.path, functools.partial(next, batches, None))) is not None:
                        yield batch.column(image[0])
                    return
                table = _read(file.path, functools.partial(opened.read_row_group, number, image, use_threads=False))
            break
        except DataError:
            if here or attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE * 4**attempt)  # a network that fails once often works a moment later
    yield from table.column(image[0]).chunks


def _label_problem(file: _File, row: int) -> str | None:
    label, names = (file.labels or [])[row], file.columns.class_names
    if label is None or label < 0 or (names is not None and label >= len(names)):
        return f"label {label}: expected a whole number from 0{'' if names is None else f' to {len(names) - 1}'}"
    return None


def _bytes(column: Any) -> list[bytes | DataError]:
    import pyarrow as pa
    import pyarrow.compute as pc

    paths: Sequence[Any] = [None] * len(column)
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("path") >= 0:
            paths = pc.struct_field(column, "path").to_pylist()
        column = pc.struct_field(column, "bytes")  # and not .field, which gives b"" where the struct is null
    return [_missing(path) if data is None else data for data, path in zip(column.to_pylist(), paths, strict=True)]


def _missing(path: Any) -> DataError:
    only = f", only the path {str(path)!r}, which is not followed: expected the image in the file"
    return DataError(f"no bytes{'' if path is None else only}")


@contextlib.contextmanager
def _open(path: Location, metadata: Any = None) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as closing:
        where = path if isinstance(path, Path) else closing.enter_context(_read(path, path.open))
        yield closing.enter_context(_read(path, lambda: pq.ParquetFile(where, metadata=metadata)))


def _read(path: Location, action: Callable[[], Any]) -> Any:
    """`action()`, where an error of pyarrow's becomes one line that names the file."""
    import pyarrow as pa

    try:
        return action()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from None
