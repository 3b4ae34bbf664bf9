"""Which columns of a Parquet file are the image and the label: as asked for, or by their names and kinds."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tarflow.data.errors import DataError
from tarflow.data.options import NO_COLUMN, LoadOptions
from tarflow.data.records import Location

_LIKELY = frozenset({"label", "labels", "class", "classes", "category", "categories", "target", "targets", "cls", "y"})


@dataclass(frozen=True)
class Columns:
    """What is read of a file; `passed_over` says of a likely column why it is none of labels, or is empty."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None
    passed_over: str = ""


def choose_columns(schema: Any, options: LoadOptions, path: Location) -> Columns:
    """The columns of the file at `path`, by its schema of pyarrow's.

    The image is `image`; else the only column that `datasets` says to be an image. The label is `label`;
    else what `datasets` says to be classes, or whole numbers under a name such as `labels` or `fine_label`, where there
    is one such column. Raises `DataError` naming the file: none, several, or of another type.
    """
    try:
        features = _features(schema)
        image = _image(schema, features, options)
        label, passed_over = _label(schema, features, options)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    try:
        names = tuple(str(name) for name in (features.get(label or "label") or {}).get("names") or ()) or None
    except (AttributeError, TypeError) as error:
        raise DataError(f"{path}: unreadable 'huggingface' metadata in its schema: {error}") from None
    return Columns(image, label, names, passed_over)


def _image(schema: Any, features: dict[str, Any], options: LoadOptions) -> str:
    alike = _of_kind(schema, features, "Image")
    name = _given(schema, options.image_column, options) or ("image" if "image" in schema.names else None)
    if name is None and len(alike) > 1:
        raise DataError(f"columns {', '.join(alike)} may be the image: choose one by --image-column")
    if name is None and not alike:
        bytes_in = [key for key in schema.names if _has_bytes(schema.field(key).type)]
        hint = f"; --image-column {bytes_in[0]} takes another" if bytes_in else ""
        raise DataError(f"expected a column 'image', got {', '.join(schema.names) or 'no columns'}{hint}")
    name = name or alike[0]
    if not _has_bytes(kind := schema.field(name).type):
        raise DataError(f"column '{name}': expected bytes, or a struct with a field 'bytes', got {kind}")
    return name


def _label(schema: Any, features: dict[str, Any], options: LoadOptions) -> tuple[str | None, str]:
    if options.unlabelled or options.label_column == NO_COLUMN:
        return None, ""
    name = _given(schema, options.label_column, options) or ("label" if "label" in schema.names else None)
    if name is not None:
        if not _is_whole(kind := schema.field(name).type):
            hint = f"; --label-column {NO_COLUMN} learns without classes"
            raise DataError(f"column '{name}': expected whole numbers, got {kind}{hint}")
        return name, ""
    likely = [key for key in schema.names if _LIKELY.intersection(re.findall(r"[a-z]+", key.lower()))]
    classes = _of_kind(schema, features, "ClassLabel")
    found = [key for key in schema.names if key in classes or (key in likely and _is_whole(schema.field(key).type))]
    if len(found) > 1:
        hint = f"choose one by --label-column, or none by --label-column {NO_COLUMN}"
        raise DataError(f"columns {', '.join(found)} may be the label: {hint}")
    if found or not likely:
        return (found[0] if found else None), ""
    kind = schema.field(likely[0]).type
    return None, f"column '{likely[0]}' is not used: expected whole numbers for classes, got {kind}"


def _given(schema: Any, name: str, options: LoadOptions) -> str | None:
    """The column that was asked for. A run's columns are looked for in other data, and need not be there."""
    if name and name not in schema.names and options.strict:
        raise DataError(f"expected a column '{name}', got {', '.join(schema.names) or 'no columns'}")
    return name if name in schema.names else None


def _of_kind(schema: Any, features: dict[str, Any], kind: str) -> list[str]:
    """The columns that `datasets` says to be of this kind, such as CIFAR-10's `img`."""
    return [key for key in schema.names if isinstance(features.get(key), dict) and features[key].get("_type") == kind]


def _is_whole(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_null(kind))  # a shard without any label has no type


def _has_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _features(schema: Any) -> dict[str, Any]:
    """What `datasets` writes of the columns into the metadata: info.features."""
    try:
        node = json.loads((schema.metadata or {}).get(b"huggingface", "{}"))
        for key in ("info", "features"):
            node = node.get(key) or {}
        return dict(node)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(f"unreadable 'huggingface' metadata in its schema: {error}") from None
