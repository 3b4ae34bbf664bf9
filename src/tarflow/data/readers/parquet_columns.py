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
    return Columns(image, label, tuple(map(str, names)) or None if isinstance(names, list) else None, passed_over)


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
