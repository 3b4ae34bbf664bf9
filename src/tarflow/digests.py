"""Is a file what was written? `file_facts` and `Digesting` take size and digest, `difference` compares them later."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

DIGESTS_FILE = "digests.json"  # what a directory keeps of its files: {name: `file_facts`}
_READ_BYTES = 1 << 18  # digested at a time


def file_facts(path: str | Path, progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """The size and a digest of a file: what it must still have when it is read again.

    `progress` is called with the number of bytes of each piece that was read.
    """
    digest, count = _new_digest(), 0
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


class Digesting:
    """Writes to an open file, and digests what goes there: `facts` are its `file_facts`, without reading it again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest, self._count = file, _new_digest(), 0

    def write(self, data: Any) -> int:
        """Write bytes, or the buffer of an array (contiguous, in C's order); how many bytes that were."""
        size = memoryview(data).nbytes
        self._file.write(data)
        self._digest.update(data)
        self._count += size
        return size

    @property
    def facts(self) -> dict[str, Any]:
        """Of what was written so far."""
        return {"bytes": self._count, "blake2b": self._digest.hexdigest()}


def _new_digest() -> Any:
    return hashlib.blake2b(digest_size=16)
