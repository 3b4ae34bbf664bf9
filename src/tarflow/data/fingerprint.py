"""Has a source changed? Two digests of its files: a quick one of what the system says, a sure one of what they hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tarflow.data.errors import DataError
from tarflow.data.records import Location, Source


def files_digest(source: Source, *, times: bool = True) -> str:
    """Of the names and sizes of the files, and of their `times` of change, in which copies of a set differ.

    Of a file elsewhere it has the identity that its keeper gives it. A source that lies in no file (the embedded
    digits) has its `content_digest`.
    """
    digest = hashlib.blake2b(digest_size=16)
    found = False
    for name, path in source_files(source):
        found = True
        try:
            if isinstance(path, Path):
                status = os.stat(path)
                identity = f"{status.st_size}\0{status.st_mtime_ns if times else ''}"
            else:
                identity = path.identity()
        except OSError as error:  # a broken link is a bad record, not the end
            identity = error.strerror or str(error)
        digest.update(f"{name}\0{identity}\n".encode(errors="surrogateescape"))
    return digest.hexdigest() if found else content_digest(source)


def content_digest(source: Source, progress: Callable[[int, int], None] | None = None) -> str:
    """Of the names and contents of the files; reads all of them. `progress` gets (files read, of how many)."""
    digest = hashlib.blake2b(digest_size=16)
    count = len(source.files) or sum(len(part.names) for part in source.parts)
    found = False
    for number, (name, path) in enumerate(source_files(source), start=1):
        found = True
        try:
            if isinstance(path, Path):
                with open(path, "rb") as file:
                    inside = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            else:
                inside = path.identity()  # its keeper has a digest of it
        except OSError as error:
            inside = error.strerror or str(error)
        digest.update(f"{name}\0{inside}\n".encode(errors="surrogateescape"))
        if progress is not None:
            progress(number, count)
    if not found:
        for part in source.parts:
            for name, content in zip(part.names, part.contents(), strict=True):
                digest.update(f"{name}\0{content.shape}\0".encode() if hasattr(content, "shape") else name.encode())
                digest.update(str(content).encode() if isinstance(content, DataError | Path) else bytes(content))
    return digest.hexdigest()


def source_files(source: Source) -> Iterator[tuple[str, Location]]:
    """(name, path) of every file of a source."""
    if source.files:
        yield from ((path.name, path) for path in source.files)
        return
    for part in source.parts:
        for name, content in zip(part.names, part.contents(), strict=True):
            if not isinstance(content, Path):
                return  # the records are no files
            yield name, content
