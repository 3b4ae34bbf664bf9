"""Which columns of a Parquet file are the image and the label: as asked for, or by their names and kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tarflow.data.errors import DataError
from tarflow.data.options import NO_COLUMN, Reading
from tarflow.data.records import Location

if TYPE_CHECKING:
    import pyarrow as pa

_LIKELY = frozenset({"label", "labels", "class", "classes", "category", "categories", "target", "targets", "cls", "y"})


@dataclass(frozen=True)
class Columns:
    """What is read of a file; `passed_over` says of a likely column why it is none of labels, or is empty."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None
    passed_over: str = ""


def choose_columns(schema: pa.Schema, reading: Reading, path: Location) -> Columns:
    """The columns of the file at `path`.

    The image is `image`; else the only column that `datasets` says to be an image. The label is `label`;
    else what `datasets` says to be classes, or whole numbers under a name such as `labels` or `fine_label`, where there
    is one such column. Raises `DataError` naming the file: none, several, or of another type.
    """
    features = _features(schema.metadata or {}, path)
    image = _image(schema, features, reading, path)
    label, passed_over = _label(schema, features, reading, path)
    try:
        names = tuple(str(name) for name in (features.get(label or "label") or {}).get("names") or ()) or None
    except (AttributeError, TypeError) as error:
        raise _unreadable(path, error) from None
    return Columns(image, label, names, passed_over)


def _image(schema: pa.Schema, features: Mapping[str, Any], reading: Reading, path: Location) -> str:
    name = _given(schema, reading.image_column, reading, path)
    if name is None:
        alike = _of_kind(schema, features, "Image")
        if "image" in schema.names:
            name = "image"
        elif len(alike) == 1:
            name = alike[0]
        elif alike:
            raise DataError(f"{path}: columns {', '.join(alike)} may be the image: choose one by --image-column")
        else:
            bytes_in = [key for key in schema.names if _bytes_of(schema.field(key).type)]
            hint = f"; --image-column {bytes_in[0]} takes another" if bytes_in else ""
            raise DataError(f"{path}: expected a column 'image', got {', '.join(schema.names) or 'no columns'}{hint}")
    if not _bytes_of(kind := schema.field(name).type):
        raise DataError(f"{path}: column '{name}': expected bytes, or a struct with a field 'bytes', got {kind}")
    return name


def _label(schema: pa.Schema, features: Mapping[str, Any], reading: Reading, path: Location) -> tuple[str | None, str]:
    if reading.unlabelled or reading.label_column == NO_COLUMN:
        return None, ""
    name = _given(schema, reading.label_column, reading, path)
    if name is None and "label" in schema.names:
        name = "label"
    if name is not None:
        if not _whole(kind := schema.field(name).type):
            raise DataError(
                f"{path}: column '{name}': expected whole numbers, got {kind}; "
                f"--label-column {NO_COLUMN} learns without classes"
            )
        return name, ""
    likely = [key for key in schema.names if _LIKELY.intersection(re.findall(r"[a-z]+", key.lower()))]
    classes = _of_kind(schema, features, "ClassLabel")
    found = [key for key in schema.names if key in classes or (key in likely and _whole(schema.field(key).type))]
    if len(found) > 1:
        raise DataError(
            f"{path}: columns {', '.join(found)} may be the label: choose one by --label-column, "
            f"or none by --label-column {NO_COLUMN}"
        )
    if found or not likely:
        return (found[0] if found else None), ""
    kind = schema.field(likely[0]).type
    return None, f"column '{likely[0]}' is not used: expected whole numbers for classes, got {kind}"


def _given(schema: pa.Schema, name: str, reading: Reading, path: Location) -> str | None:
    """The column that was asked for. A run's columns are looked for in other data, and need not be there."""
    if not name or (name not in schema.names and not reading.strict):
        return None
    if name not in schema.names:
        raise DataError(f"{path}: expected a column '{name}', got {', '.join(schema.names) or 'no columns'}")
    return name


def _of_kind(schema: pa.Schema, features: Mapping[str, Any], kind: str) -> list[str]:
    """The columns that `datasets` says to be of this kind, such as CIFAR-10's `img`."""
    return [key for key in schema.names if isinstance(features.get(key), dict) and features[key].get("_type") == kind]


def _whole(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))  # a shard without any label has no type


def _bytes_of(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _features(metadata: Mapping[bytes, bytes], path: Location) -> dict[str, Any]:
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


def _unreadable(path: Location, error: Exception) -> DataError:
    return DataError(f"{path}: unreadable 'huggingface' metadata in its schema: {error}")
