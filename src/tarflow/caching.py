"""What was computed before and may be computed again: kept in files that know when they were damaged.

A file of this module is what was written and a digest of it behind that, so that one flipped bit is no other result but
none. A place that cannot be written to costs time and is said in one line; it is no reason to fail.
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
    """Something could not be kept, and will be computed again."""


def seal(contents: bytes) -> bytes:
    """The digest that stands behind `contents` in a file."""
    return hashlib.blake2b(contents, digest_size=_SIZE).digest()


def opened(data: bytes) -> bytes | None:
    """The contents of a sealed file of these bytes; None where they are not what was written."""
    contents, digest = data[:-_SIZE], data[-_SIZE:]
    return contents if len(data) >= _SIZE and seal(contents) == digest else None


def kept(path: Path) -> bytes | None:
    """What `keep` left in a file; None where there is none, or it is damaged."""
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
    """Whether this has a digest, right or wrong: a table that somebody wrote by hand has none."""
    return isinstance(table, dict) and _SEAL in table


def unsealed(table: Any) -> dict[str, Any] | None:
    """The table that `sealed` was given; None where this is not what it made of it."""
    if not is_sealed(table):
        return None
    entries = {name: value for name, value in table.items() if name != _SEAL}
    with contextlib.suppress(ValueError, RecursionError):
        return entries if table[_SEAL] == _of_table(entries) else None
    return None


@contextlib.contextmanager
def optional(cache: Path) -> Iterator[None]:
    """Go on without it where something cannot be kept in `cache`; a `CacheWarning` says so."""
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
