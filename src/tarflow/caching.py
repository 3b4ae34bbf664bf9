"""Results that are kept to save time: each file or table holds its own digest, and a damaged one is computed again.

A cache that cannot be written to is reported in one line, and the command goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarflow import storage
from tarflow.jsontext import to_json

_SIZE = 16  # bytes of a digest
_SEAL = "blake2b"  # its name in a table


class CacheWarning(UserWarning):
    """A result could not be kept, and will be computed again."""


def seal(contents: bytes) -> bytes:
    """The digest that stands behind `contents` in a file."""
    return hashlib.blake2b(contents, digest_size=_SIZE).digest()


def opened(data: bytes) -> bytes | None:
    """The contents of a sealed file with these bytes; None where the digest does not fit."""
    contents, digest = data[:-_SIZE], data[-_SIZE:]
    return contents if len(data) >= _SIZE and seal(contents) == digest else None


def kept(path: Path) -> bytes | None:
    """The contents that `keep` wrote to a file; None where there is no file, or it is damaged."""
    try:
        return opened(path.read_bytes())
    except OSError:
        return None


def keep(path: Path, contents: bytes) -> None:
    """Keep `contents`, sealed, whole or not at all. Raises OSError where that is not possible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with storage.replacing_file(path) as temporary:
        temporary.write_bytes(contents + seal(contents))


def sealed(table: dict[str, Any]) -> dict[str, Any]:
    """A table for JSON with a digest of its entries among them."""
    return table | {_SEAL: _of_table(table)}


def is_sealed(table: Any) -> bool:
    """Whether a table has a digest, right or wrong; one that was written by hand has none."""
    return isinstance(table, dict) and _SEAL in table


def unsealed(table: Any) -> dict[str, Any] | None:
    """The table without its digest; None where there is none, or it does not fit."""
    if not is_sealed(table):
        return None
    entries = {name: value for name, value in table.items() if name != _SEAL}
    with contextlib.suppress(ValueError, RecursionError):
        return entries if table[_SEAL] == _of_table(entries) else None
    return None


@contextlib.contextmanager
def optional(cache: Path) -> Iterator[None]:
    """Turn an OSError of writing to `cache` into a `CacheWarning`."""
    try:
        yield
    except storage.InUse:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        warnings.warn(f"{cache}: {reason}; nothing is kept there, and it takes as long next time", CacheWarning, 1)


def _of_table(table: dict[str, Any]) -> str:
    text = to_json(dict(sorted(table.items())))  # as it will be written, whatever is null there
    return hashlib.blake2b(text.encode(), digest_size=_SIZE).hexdigest()
