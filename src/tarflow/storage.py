"""Writing a file or a directory whole or not at all.

Everything goes to a hidden sibling first, is flushed to the disk, and takes its name in one `rename`, which the file
system makes atomic. A process killed at any moment leaves either the old contents or the new ones, and at worst a
hidden sibling that `remove_leftovers` clears away. The exception is a directory written over an older one, which no
file system renames in one step: killed between the two, neither has its name.

`locks` keeps a second process out. What `file_facts`, or `Digesting`, said of a file when it was written tells
`difference` later whether it still is that.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tarflow.jsontext import to_json
from tarflow.locks import InUse as InUse
from tarflow.locks import check_not_in_use as check_not_in_use
from tarflow.locks import exclusive as exclusive
from tarflow.locks import exclusive_name as exclusive_name

DIGESTS_FILE = "digests.json"  # what a directory keeps of its files: {name: `file_facts`}
_MARK = ".partial-"
_READ_BYTES = 1 << 18  # digested at a time


class DamageWarning(UserWarning):
    """A damaged file was passed over, and an older one is used."""


@contextlib.contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends well it becomes `path`, otherwise it is removed."""
    path = Path(path)
    temporary = _sibling(path)
    try:
        temporary.touch(exist_ok=False)  # nobody's link is followed
        mode = temporary.stat().st_mode  # what the umask allows: some writers make files that only their owner may read
        yield temporary
        os.chmod(temporary, mode)
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if (named := _named(error, path)) is not None:
            raise named from error
        raise
    _flush(path.parent)


@contextlib.contextmanager
def replacing_directory(path: str | Path) -> Iterator[Path]:
    """Yield a new directory to fill; when the block ends well it becomes `path` (an older one there is replaced)."""
    path = Path(path)
    temporary = _sibling(path)
    try:
        temporary.mkdir()
        yield temporary
        for entry in temporary.rglob("*"):
            _flush(entry)
        _flush(temporary)
        if path.exists():  # a directory cannot be renamed over a full one: there is a moment without either
            remove_directory(path)
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if (named := _named(error, path)) is not None:
            raise named from error
        raise
    _flush(path.parent)


def remove_directory(path: str | Path) -> None:
    """Remove a directory so that nobody ever sees half of it: it loses its name first."""
    hidden = _sibling(Path(path))
    os.rename(path, hidden)
    shutil.rmtree(hidden)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8. Bytes of a file name that are no text are escaped: \\udcff."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, values: Any) -> None:
    """Write `values` as indented JSON, whole or not at all."""
    write_text(path, to_json(values, indent=2) + "\n")


def append_text(path: str | Path, text: str) -> None:
    """Add `text` to the end of a file. Not atomic: a kill, or a full disk, may cut it off."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(path, "a", encoding="utf-8", opener=lambda name, _: os.open(name, flags, 0o666)) as file:
            file.write(text)
    except OSError as error:
        if os.path.islink(path):  # which may lead to anything
            raise OSError(f"{path}: a symbolic link; expected a file, which it is appended to") from None
        raise _named(error, Path(path)) or error from None


def remove_leftovers(directory: str | Path, name: str | None = None) -> None:
    """Remove what a killed process left half-written in `directory`, all of it or that of the one entry `name`."""
    for entry in Path(directory).glob(f".{'*' if name is None else glob.escape(name)}{_MARK}*"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def cache_directory() -> Path:
    """What can be made again is kept in $TARFLOW_CACHE, else `tarflow` in $XDG_CACHE_HOME, else `~/.cache/tarflow`."""
    if own := os.environ.get("TARFLOW_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tarflow"


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


def flush(path: str | Path) -> None:
    """Put what was appended to a file on the disk; nothing where there is no such file."""
    with contextlib.suppress(FileNotFoundError):
        _flush(Path(path))


def _named(error: BaseException, path: Path) -> OSError | None:
    """An OSError that names `path` where `error` says that it could not be written, else None.

    A failed write(2) names no file, or the hidden one. safetensors raises an error of its own, with the system's number
    in its text, and torch's writer a RuntimeError that does not say why.
    """
    if isinstance(error, OSError) and error.errno and (error.filename is None or _MARK in str(error.filename)):
        return OSError(error.errno, os.strerror(error.errno), str(path))
    if found := re.search(r"I/O error: .*\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])), str(path))
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return OSError(f"{path}: could not be written; expected room on the disk")
    return None


def _sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}{_MARK}{uuid.uuid4().hex[:8]}")


def _flush(path: Path) -> None:
    """Ask the system to put a file, or the names in a directory, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
