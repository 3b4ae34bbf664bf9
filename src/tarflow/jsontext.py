"""JSON that every reader takes: a number that is not finite is null, for RFC 8259 knows no NaN and no Infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(values: Any, indent: int | None = None) -> str:
    """`values` as JSON.

    >>> to_json({"loss": float("nan"), "scores": (1.5, float("-inf"))})
    '{"loss": null, "scores": [1.5, null]}'
    """
    return json.dumps(finite(values), indent=indent, allow_nan=False)


def finite(values: Any) -> Any:
    """The same values, in tables and lists of any depth, with None for every float that is not finite."""
    if isinstance(values, Mapping):
        return {name: finite(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
