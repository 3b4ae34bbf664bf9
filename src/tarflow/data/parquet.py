"""Parquet files in the layout of the Hugging Face `datasets` library: one file, or a folder of them.

Column `image` is a struct with a field `bytes`, or plain bytes: the encoded file. Column `label`, whole numbers, is
optional; the names of the classes are in the schema's metadata under `huggingface`. Columns of other names are found by
`parquet_columns`, splits by `parquet_files`. A record's name is `file.parquet:row`, rows from 0.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarflow.data.errors import DataError, DataWarning
from tarflow.data.imagenet import oord_variant
from tarflow.data.parquet_columns import Columns, choose_columns
from tarflow.data.parquet_files import by_split
from tarflow.data.records import SPLIT_ORDER, Content, Group, Location, Part, RowNames, Source, Split
from tarflow.data.request import Reading
from tarflow.data.unpacked import check_unpacked

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 256  # encoded images held in memory at a time
ANY = Reading()
ATTEMPTS, PAUSE = 4, 1.0  # at reading from far away; seconds before the second, and four times that before the next


@dataclass(frozen=True)
class _File:
    """What the head of a file and its column of labels say."""

    path: Location
    name: str  # that its records have
    metadata: Any  # of Parquet's: read once, which matters where the file is far away
    columns: Columns
    labels: list[int | None] | None

    @property
    def rows(self) -> int:
        return self.metadata.num_rows


def open_parquet_file(path: Path, reading: Reading = ANY) -> Source:
    """One file, without a split of its own."""
    return open_parquet_splits({"all": [path]}, reading)


def open_parquet_folder(root: Path, files: Sequence[Path], reading: Reading = ANY) -> Source:
    """Files of a folder, in the splits that their names tell; one set where no name tells any (`parquet_files`)."""
    place = Path(os.path.commonpath([path.parent for path in files]))
    return open_parquet_splits(by_split(root, files), reading, place)


def open_parquet_splits(
    groups: Mapping[Split, Sequence[Location]], reading: Reading = ANY, place: Path | None = None
) -> Source:
    """The files of each split, in this order; names begin at `place`, or are those of the files alone.

    Files without a row, as Spark leaves them, say nothing. Raises `DataError` naming the file that is not like the
    others.
    """
    heads: dict[Split, list[_File]] = {}
    for split in sorted(groups, key=SPLIT_ORDER.index):
        found = [_head(path, reading, place) for path in groups[split]]
        heads[split] = [head for head in found if head is not None]
        if not heads[split]:
            raise DataError(f"{groups[split][0]}: {'' if split == 'all' else f'the {split} split '}holds no images")
    every = [head for group in heads.values() for head in group]
    for said in dict.fromkeys(head.columns.passed_over for head in every if head.columns.passed_over):
        warnings.warn(f"{every[0].path}: {said}", DataWarning, stacklevel=2)
    first = every[0]
    for head in every:
        if head.columns.label is None and (having := next((h for h in every if h.columns.label), None)):
            raise DataError(f"{head.path}: has no labels, but {having.path.name} has: expected both to be alike")
        if head.columns.class_names != first.columns.class_names:
            raise DataError(f"{head.path}: its class names differ from those of {first.path.name}")
        if (head.columns.image, head.columns.label) != (first.columns.image, first.columns.label):
            raise DataError(
                f"{head.path}: {_columns(head)}, and {first.path.name}: {_columns(first)}: expected the same"
            )
    files = tuple(head.path for head in every)
    variant = oord_variant([file.name for file in files])
    parts = tuple(_part(split, group) for split, group in heads.items())
    return Source(parts, first.columns.class_names, files=files, variant=variant)


def _columns(head: _File) -> str:
    return f"columns {head.columns.image} and {head.columns.label or 'no label'}"


def _part(split: Split, files: Sequence[_File]) -> Part:
    # The Hugging Face convention for a test set without labels is -1 in every row.
    labelled = any(label not in (None, -1) for file in files for label in file.labels or ())
    labels = [-1 if x is None else x for file in files for x in file.labels or ()] if labelled else None
    names = RowNames([(file.name, file.rows) for file in files])
    groups = []
    for file in files:
        first = 0
        for number in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(number).num_rows
            groups.append(Group(count, functools.partial(_read_group, file, number, first, labelled)))
            first += count
    whole = tuple(group for group in groups if group.rows)
    return Part(split, names, labels, lambda: (c for file in files for c in _contents(file, labelled)), whole)


def _head(path: Location, reading: Reading, place: Path | None) -> _File | None:
    with _open(path) as file:
        if file.metadata.num_rows == 0:
            return None
        _check_sizes(path, file.metadata)
        columns, labels = choose_columns(file.schema_arrow, reading, path), None
        if (label := columns.label) is not None:
            labels = _read(path, lambda: file.read(columns=[label])[label].to_pylist())
        name = path.relative_to(place).as_posix() if place is not None and isinstance(path, Path) else path.name
        return _File(path, name, file.metadata, columns, labels)


def _check_sizes(path: Location, metadata: Any) -> None:
    """Raise `DataError` where a few bytes say that they are a great many."""
    if isinstance(path, Path) and metadata.num_rows > path.stat().st_size:
        raise DataError(f"{path}: {metadata.num_rows} rows in {path.stat().st_size} bytes: expected an image a row")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(k) for k in range(group.num_columns)]
        packed = sum(column.total_compressed_size for column in columns)
        check_unpacked(str(path), packed, sum(column.total_uncompressed_size for column in columns))


def _contents(file: _File, labelled: bool) -> Iterator[Content]:
    """The encoded images, or what is wrong with the record."""
    row = 0
    with _open(file.path, file.metadata) as opened:
        for group in range(opened.num_row_groups):  # one by one: a reader of all keeps the bytes of those it has read
            batches = opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[file.columns.image])
            while (batch := _read(file.path, lambda batches=batches: next(batches, None))) is not None:
                for data in _bytes(batch.column(file.columns.image)):
                    yield _content(file, row, data, labelled)
                    row += 1


def _read_group(file: _File, number: int, first: int, labelled: bool) -> Sequence[Content]:
    """The contents of a row group, whose first row is number `first` of the file."""
    for attempt in range(1 if isinstance(file.path, Path) else ATTEMPTS):
        try:
            with _open(file.path, file.metadata) as opened:
                table = _read(
                    file.path, lambda: opened.read_row_group(number, columns=[file.columns.image], use_threads=False)
                )
            break
        except DataError:
            if isinstance(file.path, Path) or attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE * 4**attempt)  # networks have moods
    data = [value for chunk in table.column(file.columns.image).chunks for value in _bytes(chunk)]
    return [_content(file, first + row, value, labelled) for row, value in enumerate(data)]


def _content(file: _File, row: int, data: bytes | DataError, labelled: bool) -> Content:
    problem = _label_problem(file, row) if labelled else None
    return DataError(problem) if problem else data


def _label_problem(file: _File, row: int) -> str | None:
    assert file.labels is not None
    label = file.labels[row]
    top = None if file.columns.class_names is None else len(file.columns.class_names) - 1
    if label is None or label < 0 or (top is not None and label > top):
        return f"label {label}: expected a whole number from 0{'' if top is None else f' to {top}'}"
    return None


def _bytes(column: pa.Array) -> list[bytes | DataError]:
    import pyarrow as pa
    import pyarrow.compute as pc

    paths: Sequence[Any] = [None] * len(column)
    if pa.types.is_struct(column.type):
        if column.type.get_field_index("path") >= 0:
            paths = pc.struct_field(column, "path").to_pylist()
        column = pc.struct_field(column, "bytes")  # and not .field, which gives b"" where the struct is null
    return [_missing(path) if data is None else data for data, path in zip(column.to_pylist(), paths, strict=True)]


def _missing(path: Any) -> DataError:
    if path is None:
        return DataError("no bytes")
    return DataError(f"no bytes, only the path {str(path)!r}, which is not followed: expected the image in the file")


@contextlib.contextmanager
def _open(path: Location, metadata: Any = None) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with contextlib.ExitStack() as closing:
        where: Any = path
        if not isinstance(path, Path):
            where = closing.enter_context(_read(path, path.open))
        yield closing.enter_context(_read(path, lambda: pq.ParquetFile(where, metadata=metadata)))


def _read(path: Location, action: Any) -> Any:
    """`action()`, where an error of pyarrow's becomes one line that names the file."""
    import pyarrow as pa

    try:
        return action()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from None
