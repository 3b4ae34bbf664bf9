"""Parquet files in the layout of the Hugging Face `datasets` library: one file, or a folder of them.

Column `image` is a struct with a field `bytes`, or plain bytes: the encoded file. Column `label`, whole numbers, is
optional; the names of the classes are in the schema's metadata under `huggingface`, which may also say that columns of
other names are the image and the label. Files are named by their split:
`train-00000-of-00002.parquet`, `validation-...`, `test-...`. A record's name is `file.parquet:row`, rows from 0.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tarflow.data.errors import DataError
from tarflow.data.imagenet import oord_variant
from tarflow.data.records import SPLIT_ORDER, Content, Group, Location, Part, RowNames, Source, Split, split_of
from tarflow.data.unpacked import check_unpacked

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 256  # encoded images held in memory at a time
ATTEMPTS, PAUSE = 4, 1.0  # at reading from far away; seconds before the second, and four times that before the next


@dataclass(frozen=True)
class _File:
    """What the head of a file and its column of labels say."""

    path: Location
    metadata: Any  # of Parquet's: read once, which matters where the file is far away
    image: str  # the column
    labels: list[int | None] | None
    class_names: tuple[str, ...] | None

    @property
    def rows(self) -> int:
        return self.metadata.num_rows


def open_parquet_file(path: Path) -> Source:
    """One file, without a split of its own."""
    return open_parquet_splits({"all": [path]})


def open_parquet_files(paths: Sequence[Path]) -> Source:
    """The Parquet files of a folder, sorted, in the splits that their names tell; one set where no name tells any."""
    splits: dict[Path, Split | None] = {path: split_of(re.split(r"[-_.]", path.name)[0]) for path in sorted(paths)}
    named = [path for path, split in splits.items() if split]
    unnamed = [path for path, split in splits.items() if not split]
    if named and unnamed:
        raise DataError(
            f"{unnamed[0]}: expected a name that begins with train-, validation- or test-, "
            f"as has {named[0].name} beside it"
        )
    groups: dict[Split, list[Location]] = {}
    for path, split in splits.items():
        groups.setdefault(split or "all", []).append(path)
    return open_parquet_splits(groups)


def open_parquet_splits(groups: Mapping[Split, Sequence[Location]]) -> Source:
    """The files of each split, in this order. Raises `DataError` naming the file that is not like the others."""
    heads = {split: [_head(path) for path in groups[split]] for split in sorted(groups, key=SPLIT_ORDER.index)}
    every = [head for group in heads.values() for head in group]
    first = every[0]
    for head in every:
        if head.class_names != first.class_names:
            raise DataError(f"{head.path}: its class names differ from those of {first.path.name}")
    files = tuple(head.path for head in every)
    variant = oord_variant([file.name for file in files])
    parts = tuple(_part(split, group) for split, group in heads.items())
    return Source(parts, first.class_names, files=files, variant=variant)


def _part(split: Split, files: Sequence[_File]) -> Part:
    labelled = [any(label not in (None, -1) for label in file.labels or ()) for file in files]
    if any(labelled) and not all(labelled):
        without, having = files[labelled.index(False)], files[labelled.index(True)]
        raise DataError(f"{without.path}: has no labels, but {having.path.name} has: expected both to be alike")
    # The Hugging Face convention for a test set without labels is -1 in every row.
    labels = [-1 if x is None else x for file in files for x in file.labels or ()] if all(labelled) else None
    names = RowNames([(file.path.name, file.rows) for file in files])
    groups = []
    for file in files:
        first = 0
        for number in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(number).num_rows
            groups.append(Group(count, functools.partial(_read_group, file, number, first, all(labelled))))
            first += count
    whole = tuple(group for group in groups if group.rows)
    return Part(split, names, labels, lambda: (c for file in files for c in _contents(file, all(labelled))), whole)


def _head(path: Location) -> _File:
    with _open(path) as file:
        _check_sizes(path, file.metadata)
        schema = file.schema_arrow
        features = _features(schema.metadata or {}, path)
        image = _column(schema.names, features, "image", "Image")
        if image is None:
            raise DataError(f"{path}: expected a column 'image', got {', '.join(schema.names) or 'no columns'}")
        _check_image_type(schema.field(image).type, path, image)
        labels, label = None, _column(schema.names, features, "label", "ClassLabel")
        if label is not None:
            import pyarrow as pa

            if not pa.types.is_integer(schema.field(label).type):
                raise DataError(f"{path}: column '{label}': expected whole numbers, got {schema.field(label).type}")
            labels = _read(path, lambda: file.read(columns=[label])[label].to_pylist())
        return _File(path, file.metadata, image, labels, _class_names(features, label or "label", path))


def _check_sizes(path: Location, metadata: Any) -> None:
    """Raise `DataError` where a few bytes say that they are a great many."""
    if isinstance(path, Path) and metadata.num_rows > path.stat().st_size:
        raise DataError(f"{path}: {metadata.num_rows} rows in {path.stat().st_size} bytes: expected an image a row")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(k) for k in range(group.num_columns)]
        packed = sum(column.total_compressed_size for column in columns)
        check_unpacked(str(path), packed, sum(column.total_uncompressed_size for column in columns))


def _column(names: Sequence[str], features: dict[str, Any], name: str, kind: str) -> str | None:
    """The column `name`, or else the only one that `datasets` says to be of this kind, such as CIFAR-10's `img`."""
    if name in names:
        return name
    alike = [key for key in names if isinstance(features.get(key), dict) and features[key].get("_type") == kind]
    return alike[0] if len(alike) == 1 else None


def _contents(file: _File, labelled: bool) -> Iterator[Content]:
    """The encoded images, or what is wrong with the record."""
    row = 0
    with _open(file.path, file.metadata) as opened:
        for group in range(opened.num_row_groups):  # one by one: a reader of all keeps the bytes of those it has read
            batches = opened.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[file.image])
            while (batch := _read(file.path, lambda batches=batches: next(batches, None))) is not None:
                for data in _bytes(batch.column(file.image)):
                    yield _content(file, row, data, labelled)
                    row += 1


def _read_group(file: _File, number: int, first: int, labelled: bool) -> Sequence[Content]:
    """The contents of a row group, whose first row is number `first` of the file."""
    for attempt in range(1 if isinstance(file.path, Path) else ATTEMPTS):
        try:
            with _open(file.path, file.metadata) as opened:
                table = _read(file.path, lambda: opened.read_row_group(number, columns=[file.image], use_threads=False))
            break
        except DataError:
            if isinstance(file.path, Path) or attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE * 4**attempt)  # networks have moods
    data = [value for chunk in table.column(file.image).chunks for value in _bytes(chunk)]
    return [_content(file, first + row, value, labelled) for row, value in enumerate(data)]


def _content(file: _File, row: int, data: bytes | None, labelled: bool) -> Content:
    problem = _label_problem(file, row) if labelled else None
    return DataError(problem) if problem else DataError("no bytes") if data is None else data


def _label_problem(file: _File, row: int) -> str | None:
    assert file.labels is not None
    label = file.labels[row]
    top = None if file.class_names is None else len(file.class_names) - 1
    if label is None or label < 0 or (top is not None and label > top):
        return f"label {label}: expected a whole number from 0{'' if top is None else f' to {top}'}"
    return None


def _bytes(column: pa.Array) -> list[bytes | None]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")  # and not .field, which gives b"" where the struct is null
    values: list[bytes | None] = column.to_pylist()
    return values


def _check_image_type(kind: pa.DataType, path: Location, column: str) -> None:
    import pyarrow as pa

    inner = kind
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner) or pa.types.is_binary_view(inner)):
        raise DataError(f"{path}: column '{column}': expected bytes, or a struct with a field 'bytes', got {kind}")


def _features(metadata: dict[bytes, bytes], path: Location) -> dict[str, Any]:
    """What `datasets` writes of the columns into the metadata: info.features."""
    if b"huggingface" not in metadata:
        return {}
    try:
        node = json.loads(metadata[b"huggingface"])
        for key in ("info", "features"):
            node = node.get(key) or {}
        return dict(node)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _class_names(features: dict[str, Any], label: str, path: Location) -> tuple[str, ...] | None:
    try:
        return tuple(str(name) for name in (features.get(label) or {}).get("names") or ()) or None
    except (AttributeError, TypeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Location, error: Exception) -> DataError:
    return DataError(f"{path}: unreadable 'huggingface' metadata in its schema: {error}")


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
