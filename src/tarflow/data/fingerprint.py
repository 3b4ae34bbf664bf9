"""Has a source changed? Digests of its files: of what the system says, of places in them, and of all that they hold."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tarflow.data.errors import DataError
from tarflow.data.records import Location, Source

PLACES_BYTES = 1 << 30  # of all files that `places_digest` reads in full: a few seconds, once a command
_PLACES, _PLACE_BYTES = 64, 4096  # of a larger file, at most; and the least of one: what a disk reads at a time
_AT_ONCE = 1 << 12  # files
_READERS = 16  # threads, because a file on a network costs its time of waiting


def files_digest(source: Source) -> str:
    """Of the names and sizes of the files, and of their times of change, in which copies of a set differ.

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
                identity = f"{status.st_size}\0{status.st_mtime_ns}"
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


def places_digest(source: Source) -> str:
    """Of the names and sizes of the files, and of their contents as far as `PLACES_BYTES` go.

    Up to so many bytes in all, everything is read. Of more, each file is read in its share, at its ends and at places
    spread over it: encoded images that were replaced by others differ almost everywhere.
    """
    found = list(source_files(source))
    if not found:
        return content_digest(source)
    sizes = [_size(path) for _, path in found]
    total = sum(sizes)
    share = 1.0 if total <= PLACES_BYTES else PLACES_BYTES / total

    def inside(entry: tuple[Location, int]) -> str:
        path, size = entry
        try:
            if not isinstance(path, Path):
                return path.identity()
            digest = hashlib.blake2b(digest_size=16)
            with open(path, "rb") as file:
                for start, length in _places(size, share):
                    file.seek(start)
                    digest.update(file.read(length))
            return digest.hexdigest()
        except OSError as error:  # a broken link is a bad record, not the end
            return error.strerror or str(error)

    digest = hashlib.blake2b(digest_size=16)
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(found), _AT_ONCE):  # a pool takes all that it is given into memory
            some, of_size = found[start : start + _AT_ONCE], sizes[start : start + _AT_ONCE]
            contents = pool.map(inside, zip((path for _, path in some), of_size, strict=True))
            for (name, _), size, content in zip(some, of_size, contents, strict=True):
                digest.update(f"{name}\0{size}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _size(path: Location) -> int:
    try:
        return os.stat(path).st_size if isinstance(path, Path) else 0
    except OSError:
        return 0


def _places(size: int, share: float) -> list[tuple[int, int]]:
    """(start, length) of what is read of a file of `size` bytes; the whole where the share is 1 or the file small."""
    length = max(_PLACE_BYTES, int(size * share) // _PLACES)
    if share >= 1 or size <= length:
        return [(0, size)]
    count = max(2, min(_PLACES, int(size * share) // length))
    return [(place * (size - length) // (count - 1), length) for place in range(count)]


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
