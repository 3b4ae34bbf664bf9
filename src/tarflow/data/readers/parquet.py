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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tarflow.data.errors import DataError, DataWarning, check_unpacked
from tarflow.data.names import few, split_of
from tarflow.data.options import NO_COLUMN, LoadOptions
from tarflow.data.readers.folder import image_names
from tarflow.data.readers.imagenet import oord_variant
from tarflow.data.records import SPLIT_ORDER, Content, Location, Records, Source, Split, read_rows, rows_within

_LIKELY = frozenset({"label", "labels", "class", "classes", "category", "categories", "target", "targets", "cls", "y"})
_BATCH_ROWS = 256  # encoded images held in memory at a time
ATTEMPTS, PAUSE = 4, 1.0  # at reading from far away; seconds before the second, and four times that before the next


class _Columns(NamedTuple):
    """Those of images and labels, and the names of the classes."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None

    def __str__(self) -> str:
        classes = "" if self.class_names is None else f", classes {few(self.class_names)}"
        return f"columns {self.image} and {self.label or 'no label'}{classes}"


class _File(NamedTuple):
    """What the head of a file and its column of labels say."""

    path: Location
    name: str  # that its records have
    metadata: Any  # of Parquet's: read once, which matters where the file is far away
    columns: _Columns
    passed_over: str  # of a likely column, why it is none of labels
    labels: list[int | None]


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
        heads[split] = [head for path in groups[split] if (head := _head(path, options or LoadOptions(), place))]
        if not heads[split]:
            raise DataError(f"{groups[split][0]}: {'' if split == 'all' else f'the {split} split '}holds no images")
    every = [head for group in heads.values() for head in group]
    for said in dict.fromkeys(head.passed_over for head in every if head.passed_over):
        warnings.warn(f"{every[0].path}: {said}", DataWarning, stacklevel=2)
    first = every[0]
    for head in every:
        if head.columns != first.columns:
            raise DataError(f"{head.path}: {head.columns}, and {first.path.name}: {first.columns}: expected the same")
    files, parts = tuple(head.path for head in every), tuple(_records(*entry) for entry in heads.items())
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
            chunks = [group.column(k) for k in range(group.num_columns)]
            packed = sum(chunk.total_compressed_size for chunk in chunks)
            check_unpacked(str(path), packed, sum(chunk.total_uncompressed_size for chunk in chunks))
        try:
            columns, passed_over = _columns_of(file.schema_arrow, options)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        labels = [] if columns.label is None else file.read(columns=[columns.label])[columns.label].to_pylist()
        name = path.relative_to(place).as_posix() if place is not None and isinstance(path, Path) else path.name
        return _File(path, name, metadata, columns, passed_over, labels)


def _records(split: Split, files: Sequence[_File]) -> Records:
    labels, names = [label for file in files for label in file.labels], files[0].columns.class_names
    # The Hugging Face convention for a test set without labels is -1 in every row.
    labelled = any(label not in (None, -1) for label in labels)
    groups = [
        (file.metadata.row_group(number).num_rows, functools.partial(_group, file, number))
        for file in files
        for number in range(file.metadata.num_row_groups)  # a reader of all keeps the bytes of those it has read
    ]
    numbers = "a whole number from 0" + (f" to {len(names) - 1}" if names else "")

    def read(rows: Sequence[int]) -> Iterator[Content]:
        for row, content in zip(rows, read_rows(groups, rows), strict=True):
            label = labels[row] if labelled else 0
            if label is None or label < 0 or (names is not None and label >= len(names)):
                content = DataError(f"label {label}: expected {numbers}")
            yield content

    own = [-1 if label is None else label for label in labels] if labelled else None
    return Records.in_files(split, [(file.name, file.metadata.num_rows) for file in files], own, read)


def _group(file: _File, number: int, rows: Any) -> Iterator[Content]:
    """The encoded images of these rows of a row group, or what is wrong with them."""
    start = 0
    for column in _columns(file, number):
        chosen = rows_within(rows, start, len(column))
        yield from _bytes(column if len(chosen) == len(column) else column.take(chosen))
        start += len(column)


def _columns(file: _File, number: int) -> Iterator[Any]:
    """The images of a row group, some at a time. Of what is far away the group is fetched, again if need be."""
    image = file.columns.image
    if isinstance(file.path, Path):
        with _open(file.path, file.metadata) as opened:
            for batch in opened.iter_batches(_BATCH_ROWS, row_groups=[number], columns=[image]):
                yield batch.column(image)
        return
    for attempt in range(ATTEMPTS):
        try:
            with _open(file.path, file.metadata) as opened:
                table = opened.read_row_group(number, [image], use_threads=False)
            break
        except DataError:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE * 4**attempt)  # a network that fails once often works a moment later
    yield from table.column(image).chunks


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
    """The file. An error of pyarrow's, then or later in the block, becomes one line that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with contextlib.ExitStack() as closing:
            where = path if isinstance(path, Path) else closing.enter_context(path.open())
            yield closing.enter_context(pq.ParquetFile(where, metadata=metadata))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {' '.join(str(error).split())}") from None


def _columns_of(schema: Any, options: LoadOptions) -> tuple[_Columns, str]:
    """The columns of images and labels, and why a likely column is none of labels, or "".

    The image is `image`; else the only column that `datasets` says to be an image. The label is `label`; else what
    `datasets` says to be classes, or whole numbers under a name such as `labels`, where there is one such column.
    Raises `DataError`: none, several, or of another type.
    """
    features, names, strict = _features(schema), schema.names, options.strict
    images = [key for key in names if features.get(key, {}).get("_type") == "Image"]  # such as CIFAR-10's `img`
    image = _chosen(names, "image", options.image_column, strict, images)
    if image is None:
        others = [key for key in names if _has_bytes(schema.field(key).type)]
        hint = f"; --image-column {others[0]} takes another" if others else ""
        raise DataError(f"expected a column 'image', got {', '.join(names) or 'no columns'}{hint}")
    if not _has_bytes(kind := schema.field(image).type):
        raise DataError(f"column '{image}': expected bytes, or a struct with a field 'bytes', got {kind}")
    label, passed_over = None, ""
    if not options.unlabelled and options.label_column != NO_COLUMN:
        whole = {key for key in names if re.fullmatch(r"u?int\d+|null", str(schema.field(key).type))}
        likely = [key for key in names if _LIKELY.intersection(re.findall(r"[a-z]+", key.lower()))]
        declared = {key for key in names if features.get(key, {}).get("_type") == "ClassLabel"}
        able = [key for key in names if key in declared or (key in likely and key in whole)]
        label = _chosen(names, "label", options.label_column, strict, able)
        if label is not None and label not in whole:
            hint = f"; --label-column {NO_COLUMN} learns without classes"
            raise DataError(f"column '{label}': expected whole numbers, got {schema.field(label).type}{hint}")
        if label is None and likely:
            kind = schema.field(likely[0]).type
            passed_over = f"column '{likely[0]}' is not used: expected whole numbers for classes, got {kind}"
    classes = features.get(label or "label", {}).get("names")
    return _Columns(image, label, tuple(map(str, classes)) or None if isinstance(classes, list) else None), passed_over


def _chosen(names: Sequence[str], what: str, asked: str, strict: bool, others: Sequence[str]) -> str | None:
    """The column that was asked for, else that of the usual name, else the only one of the others.

    A run's column need not be there in other data, which is not `strict`.
    """
    if asked and asked not in names and strict:
        raise DataError(f"expected a column '{asked}', got {', '.join(names) or 'no columns'}")
    usual = next((name for name in (asked, what) if name in names), None)
    if usual is None and len(others) > 1:
        none = f", or none by --label-column {NO_COLUMN}" if what == "label" else ""
        raise DataError(f"columns {', '.join(others)} may be the {what}: choose one by --{what}-column{none}")
    return usual or next(iter(others), None)


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
