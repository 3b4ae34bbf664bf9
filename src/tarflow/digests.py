"""Is what is read what was written? Digests of files, and of results that are kept to save time.

What is kept holds its own digest, and is computed again where it is damaged. A cache that cannot be written to is
reported in one line, and the command goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tarflow import storage
from tarflow.jsontext import to_json

DIGESTS_FILE = "digests.json"  # what a directory keeps of its files: {name: `file_facts`}
_READ_BYTES = 1 << 18  # digested at a time
_SIZE = 16  # bytes of a digest
_SEAL = "blake2b"  # its name in a table


def new_digest() -> Any:
    """One of `hashlib`'s that has seen nothing yet, of the kind that is used throughout."""
    return hashlib.blake2b(digest_size=_SIZE)


def file_facts(path: str | Path, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """The size and a digest of a file: what it must still have when it is read again.

    `progress` is called with the number of bytes of each piece that was read.
    """
    digest, count = new_digest(), 0
    with open(path, "rb", buffering=0) as file:
        piece = memoryview(bytearray(_READ_BYTES))
        while size := file.readinto(piece):
            digest.update(piece[:size])
            count += size
            if progress is not None:
                progress(size)
    return {"bytes": count, "blake2b": digest.hexdigest()}


def difference(path: str | Path, facts: dict[str, Any], progress: Callable[[int], None] | None = None) -> str | None:
    """Why a file is not what `facts` say that was written, in a few words; None where it is.

    `progress` is that of `file_facts`. Raises KeyError or TypeError where `facts` are no facts.
    """
    size, digest = facts["bytes"], facts["blake2b"]
    try:
        if not Path(path).is_file():
            return "missing"
        if (found := os.stat(path).st_size) != size:
            return f"damaged, {found} bytes of {size}"
        if file_facts(path, progress)["blake2b"] != digest:
            return "damaged, its digest is not that of what was written"
    except OSError as error:  # such as a disk that cannot read it any more
        return error.strerror or str(error)
    return None


def recorded(directory: Path, names: Collection[str]) -> dict[str, dict[str, Any]]:
    """The `DIGESTS_FILE` of a directory. Raises ValueError where it is missing, damaged, or says nothing of a name."""
    try:
        known: dict[str, dict[str, Any]] = json.loads((directory / DIGESTS_FILE).read_text(encoding="utf-8"))
        if known.keys() >= set(names) and all(
            {key: type(value) for key, value in facts.items()} == {"bytes": int, _SEAL: str} for facts in known.values()
        ):
            return known
    except FileNotFoundError:
        raise ValueError(f"{DIGESTS_FILE}: missing, so that nothing tells what was written") from None
    except OSError as error:
        raise ValueError(f"{DIGESTS_FILE}: {error.strerror or error}") from None
    except (ValueError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{DIGESTS_FILE}: damaged")


class Digesting:
    """Writes to an open file, and digests what goes there: `facts` are its `file_facts`, without reading it again.

    `digest` is that of `hashlib` which has seen it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self._count = file, new_digest(), 0

    def write(self, data: Any) -> int:
        """Write bytes, or the buffer of an array (contiguous, in C's order); how many bytes that were."""
        size = memoryview(data).nbytes
        self.file.write(data)
        self.digest.update(data)
        self._count += size
        return size

    @property
    def facts(self) -> dict[str, Any]:
        """Of what was written so far."""
        return {"bytes": self._count, "blake2b": self.digest.hexdigest()}


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
