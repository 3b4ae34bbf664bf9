"""Parquet files in the layout of the Hugging Face `datasets` library: one file, or a folder of them.

Column `image` is a struct with a field `bytes`, or plain bytes: the encoded file. Column `label`, whole numbers, is
optional; the names of the classes are in the schema's metadata under `huggingface`. Files are of the split that their
name, or that of their folder, speaks of. A record's name is `file.parquet:row`, rows from 0.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarflow.data.errors import DataError, DataWarning, check_unpacked
from tarflow.data.options import NO_COLUMN, LoadOptions
from tarflow.data.readers.folder import image_names
from tarflow.data.readers.imagenet import oord_variant
from tarflow.data.records import SPLIT_ORDER, Content, Location, Records, Source, Split, records_in_files, rows_within
from tarflow.data.split_names import split_of

_LIKELY = frozenset({"label", "labels", "class", "classes", "category", "categories", "target", "targets", "cls", "y"})
_BATCH_ROWS = 256  # encoded images held in memory at a time
ATTEMPTS, PAUSE = 4, 1.0  # at reading from far away; seconds before the second, and four times that before the next


@dataclass(frozen=True)
class _File:
    """What the head of a file and its column of labels say."""

    path: Location
    name: str  # that its records have
    metadata: Any  # of Parquet's: read once, which matters where the file is far away
    image: str  # the column
    label: str | None
    class_names: tuple[str, ...] | None
    passed_over: str  # of a likely column, why it is none of labels
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
    for said in dict.fromkeys(head.passed_over for head in every if head.passed_over):
        warnings.warn(f"{every[0].path}: {said}", DataWarning, stacklevel=2)
    first, labelled = every[0], next((head for head in every if head.label), None)
    for head in every:
        columns, others = (f"columns {h.image} and {h.label or 'no label'}" for h in (head, first))
        if labelled and head.label is None:
            raise DataError(f"{head.path}: has no labels, but {labelled.path.name} has: expected both to be alike")
        if head.class_names != first.class_names:
            raise DataError(f"{head.path}: its class names differ from those of {first.path.name}")
        if columns != others:
            raise DataError(f"{head.path}: {columns}, and {first.path.name}: {others}: expected the same")
    files, parts = tuple(head.path for head in every), tuple(_records(*entry) for entry in heads.items())
    return Source(parts, first.class_names, files=files, variant=oord_variant([file.name for file in files]))


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
        image, label, names, passed_over = _columns_of(file.schema_arrow, options, path)
        labels = None
        if label is not None:
            labels = _read(path, lambda: file.read(columns=[label])[label].to_pylist())
        name = path.relative_to(place).as_posix() if place is not None and isinstance(path, Path) else path.name
        return _File(path, name, metadata, image, label, names, passed_over, labels)


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
    image, here = [file.image], isinstance(file.path, Path)
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
    label, names = (file.labels or [])[row], file.class_names
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
    only = ", only the path {!r}, which is not followed: expected the image in the file"
    return [
        DataError(f"no bytes{'' if path is None else only.format(str(path))}") if data is None else data
        for data, path in zip(column.to_pylist(), paths, strict=True)
    ]


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


def _columns_of(schema: Any, options: LoadOptions, path: Location) -> tuple[str, str | None, Any, str]:
    """The columns of images and labels, the names of the classes, and why a likely column is none of labels, or "".

    The image is `image`; else the only column that `datasets` says to be an image. The label is `label`; else what
    `datasets` says to be classes, or whole numbers under a name such as `labels`, where there is one such column.
    Raises `DataError` naming the file: none, several, or of another type.
    """
    try:
        features = _features(schema)
        images, classes = (
            [key for key in schema.names if features.get(key, {}).get("_type") == kind]  # such as CIFAR-10's `img`
            for kind in ("Image", "ClassLabel")
        )
        image = _named(schema, "image", options.image_column, options.strict) or _only("image", images)
        if image is None:
            others = [key for key in schema.names if _has_bytes(schema.field(key).type)]
            hint = f"; --image-column {others[0]} takes another" if others else ""
            raise DataError(f"expected a column 'image', got {', '.join(schema.names) or 'no columns'}{hint}")
        if not _has_bytes(kind := schema.field(image).type):
            raise DataError(f"column '{image}': expected bytes, or a struct with a field 'bytes', got {kind}")
        label, passed_over = None, ""
        if not options.unlabelled and options.label_column != NO_COLUMN:
            label = _named(schema, "label", options.label_column, options.strict)
            if label is not None and not _is_whole(kind := schema.field(label).type):
                hint = f"; --label-column {NO_COLUMN} learns without classes"
                raise DataError(f"column '{label}': expected whole numbers, got {kind}{hint}")
            likely = [key for key in schema.names if _LIKELY.intersection(re.findall(r"[a-z]+", key.lower()))]
            whole = [key for key in likely if _is_whole(schema.field(key).type)]
            label = label or _only("label", [key for key in schema.names if key in classes + whole])
            if label is None and likely:
                kind = schema.field(likely[0]).type
                passed_over = f"column '{likely[0]}' is not used: expected whole numbers for classes, got {kind}"
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    names = features.get(label or "label", {}).get("names")
    return image, label, tuple(map(str, names)) or None if isinstance(names, list) else None, passed_over


def _named(schema: Any, what: str, asked: str, strict: bool) -> str | None:
    """The column that was asked for, or else that of the usual name. A run's need not be there in other data."""
    if asked and asked not in schema.names and strict:
        raise DataError(f"expected a column '{asked}', got {', '.join(schema.names) or 'no columns'}")
    return next((name for name in (asked or what, what) if name in schema.names), None)


def _only(what: str, found: list[str]) -> str | None:
    if len(found) > 1:
        none = f", or none by --label-column {NO_COLUMN}" if what == "label" else ""
        raise DataError(f"columns {', '.join(found)} may be the {what}: choose one by --{what}-column{none}")
    return found[0] if found else None


def _is_whole(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))  # a shard without any label has no type


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` writes of the columns into the metadata: info.features."""
    try:
        node = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
        for key in ("info", "features"):
            node = node.get(key) or {}
        return {key: feature for key, feature in node.items() if isinstance(feature, dict)}
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"unreadable 'huggingface' metadata in its schema: {error}") from None
