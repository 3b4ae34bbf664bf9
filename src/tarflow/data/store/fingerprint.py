"""Has a source changed? Digests of its files: of what the system says of them, or of all that they hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tarflow.data.errors import DataError
from tarflow.data.records import Content, Location, Source


def files_digest(source: Source) -> str:
    """Of the names and sizes of the files, and of their times of change, in which copies of a set differ.

    Of a file elsewhere it has the identity that its keeper gives it. A source that lies in no file (the embedded
    digits) has its `content_digest`.
    """

    def identity(path: Location) -> str:
        if not isinstance(path, Path):
            return path.identity()
        status = os.stat(path)
        return f"{status.st_size}\0{status.st_mtime_ns}"

    return _digest(source, identity, None)


def content_digest(source: Source, progress: Callable[[int, int], None] | None = None) -> str:
    """Of the names and contents of the files; reads all of them. `progress` gets (files read, of how many)."""

    def identity(path: Location) -> str:
        if not isinstance(path, Path):
            return path.identity()  # its keeper has a digest of it
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    return _digest(source, identity, progress)


def _digest(source: Source, identity: Callable[[Location], str], progress: Callable[[int, int], None] | None) -> str:
    digest = hashlib.blake2b(digest_size=16)
    total = len(source.files) or sum(map(len, source.parts))
    for number, (name, content) in enumerate(_files(source), start=1):
        try:
            if isinstance(content, np.ndarray | bytes | DataError):  # a record that is no file
                of = str(getattr(content, "shape", "")) + hashlib.blake2b(_bytes(content), digest_size=16).hexdigest()
            else:
                of = identity(content)
        except OSError as error:  # a broken link is a bad record, not the end
            of = error.strerror or str(error)
        digest.update(f"{name}\0{of}\n".encode(errors="surrogateescape"))
        if progress is not None:
            progress(number, total)
    return digest.hexdigest()


def _files(source: Source) -> Iterator[tuple[str, Location | Content]]:
    """(name, file) for every file of a source; of one that lies in none its records."""
    if source.files:
        yield from ((path.name, path) for path in source.files)
        return
    for part in source.parts:
        yield from zip(part.names, part, strict=True)


def _bytes(content: bytes | DataError | np.ndarray[Any, Any]) -> bytes:
    return str(content).encode() if isinstance(content, DataError) else bytes(content)
