"""Writing a file or a directory whole or not at all.

Everything goes to a hidden sibling first, is flushed to the disk, and takes its name in one `rename`, which the file
system makes atomic. A process killed at any moment leaves either the old contents or the new ones, and at worst a
hidden sibling, which the next who writes there clears away. The exception is a directory written over an older one,
which no file system renames in one step: killed between the two, neither has its name.

`exclusive` keeps a second process out of a directory, and `exclusive_name` from making one of the same name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarflow import unfinished
from tarflow.unfinished import remove_leftovers as remove_leftovers

if sys.platform != "win32":
    import fcntl

LOCK_FILE = ".lock"
# What file systems and other systems answer where a directory, or what is open for reading, is not flushed.
_NOT_FLUSHED = (
    *(errno.EINVAL, errno.EPERM, errno.EACCES, errno.EBADF, errno.EISDIR),
    *(errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY),
)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks answer


class InUse(OSError):
    """A directory that another process is writing to."""


class DamageWarning(UserWarning):
    """A damaged file was passed over, and an older one is used."""


@contextlib.contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends well it becomes `path`, otherwise it is removed."""
    path = Path(path)
    with naming(path):
        temporary = _begun(path)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the umask allows: some writers make files for their owner alone
            yield temporary
            if temporary.stat().st_mode != mode:
                with contextlib.suppress(OSError):  # a share that belongs to somebody else
                    os.chmod(temporary, mode)
            _flush(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    _flush(path.parent)


@contextlib.contextmanager
def replacing_directory(path: str | Path) -> Iterator[Path]:
    """Yield a new directory to fill; when the block ends well it becomes `path` (an older one there is replaced).

    Where `path` is a symbolic link to a directory, that directory is replaced, and the link stays.
    """
    path = behind_links(path)
    if os.path.ismount(path):
        raise ValueError(f"{path}: a mounted file system, which cannot be replaced; name a directory inside it")
    with naming(path):
        temporary = _begun(path)
        older = None
        try:
            temporary.mkdir()
            yield temporary
            for entry in temporary.rglob("*"):
                _flush(entry)
            _flush(temporary)
            if path.exists():  # a directory cannot be renamed over a full one: there is a moment without either
                older = unfinished.sibling(path)
                os.rename(path, older)
            os.rename(temporary, path)
        except BaseException:
            if older is not None and older.exists() and not path.exists():
                os.rename(older, path)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    if older is not None:
        shutil.rmtree(older, ignore_errors=True)  # what stays of it is hidden, and goes with the next
    _flush(path.parent)


def remove_directory(path: str | Path) -> None:
    """Remove a directory so that nobody ever sees half of it: it loses its name first.

    Of a symbolic link the link goes: what it leads to was put there by somebody else.
    """
    path = Path(path)
    if path.is_symlink():
        path.unlink()
        return
    hidden = unfinished.sibling(path)
    os.rename(path, hidden)
    shutil.rmtree(hidden)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let errors of writing that name no file, or a hidden one, name `path`."""
    try:
        yield
    except BaseException as error:
        if (named := _named(error, Path(path))) is not None:
            raise named from error
        raise


def behind_links(path: str | Path) -> Path:
    """What has the name in truth, where it is a symbolic link."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def check_writable(path: str | Path) -> None:
    """Raise OSError naming `path` where no file of that name can be written: before hours of work, not after."""
    path = Path(path)
    with naming(path):
        temporary = _begun(path)
        temporary.touch()
        temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, values: Any) -> None:
    """Write `values` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def append_text(path: str | Path, text: str) -> None:
    """Add `text` to the end of a file. Not atomic: a kill, or a full disk, may cut it off."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _named(error, Path(path)) or error from None


@contextlib.contextmanager
def exclusive(directory: str | Path) -> Iterator[None]:
    """Keep every other process out of `directory` that asks in the same way, until the block or this process ends.

    The lock is the system's (`flock` on a hidden file), and goes with the process, also by `kill -9`: what a killed one
    leaves is a file that nobody holds. Where there are no such locks nobody is kept out.

    Raises:
        InUse: another process is in it; the message names the process, where that is known.
    """
    with _held(Path(directory) / LOCK_FILE, Path(directory)):
        yield


@contextlib.contextmanager
def exclusive_name(path: str | Path) -> Iterator[None]:
    """`exclusive` for what is to appear under the name `path` as a whole: the lock is a hidden sibling of it.

    A lock within the directory would be renamed away with what it replaces.
    """
    path = behind_links(path)
    with _held(path.with_name(f".{unfinished.stem(path.name)}{LOCK_FILE}"), path):
        yield


def check_not_in_use(directory: str | Path) -> None:
    """Raise InUse where another process is in `directory` just now."""
    if (Path(directory) / LOCK_FILE).exists():
        with exclusive(directory):
            pass


@contextlib.contextmanager
def _held(lock: Path, path: Path) -> Iterator[None]:
    """Hold the file `lock`, which stands for `path`, until the block ends."""
    descriptor = _lock(lock, path)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                lock.unlink()  # while it is held; whoever has opened it already sees that it lost its name
            os.close(descriptor)


def _lock(lock: Path, path: Path) -> int | None:
    """The open file `lock`, locked, or None where there are no locks. Raises InUse of `path`."""
    if sys.platform == "win32":
        return None
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:  # of the hidden file; who asks has never heard of it
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(descriptor, lock):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise InUse(f"{path}: {holder} is writing to it; wait until it ends, or name another") from None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _NO_LOCKS:
                return None
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
        os.close(descriptor)  # its holder has removed it between our opening and locking it: that of the next is new


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the open file has the name `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def cache_directory() -> Path | None:
    """What can be made again is kept in $TARFLOW_CACHE, else `tarflow` in $XDG_CACHE_HOME, else `~/.cache/tarflow`.

    None for a user without a home, as in a container that does not know its number. It need not be there.
    """
    if own := os.environ.get("TARFLOW_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tarflow"
    except RuntimeError:  # Path.home
        return None


def flush(path: str | Path) -> None:
    """Put what was appended to a file on the disk; nothing where there is no such file."""
    with contextlib.suppress(FileNotFoundError):
        _flush(Path(path))


def _named(error: BaseException, path: Path) -> OSError | None:
    """An OSError that names `path` where `error` says that it could not be written, else None.

    A failed write(2) names no file, or the hidden one. safetensors raises an error of its own, with the system's number
    in its text, and torch's writer a RuntimeError that does not say why.
    """
    if (
        isinstance(error, OSError)
        and error.errno
        and (error.filename is None or unfinished.MARK in str(error.filename))
    ):
        return OSError(error.errno, os.strerror(error.errno), str(path))
    if found := re.search(r"I/O error: .*\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])), str(path))
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return OSError(f"{path}: could not be written; expected room on the disk")
    return None


def _begun(path: Path) -> Path:
    """The name that `path` has until it is whole, where it may have its own; what killed processes left is gone."""
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # which says what is wrong with the name, such as its length
    unfinished.remove_abandoned(path.parent)
    return unfinished.sibling(path)


def _flush(path: Path) -> None:
    """Ask the system to put a file, or the names in a directory, on the disk; as far as it is willing to."""
    try:
        descriptor = _opened(path)
    except OSError as error:
        if error.errno in _NOT_FLUSHED:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FLUSHED:
            raise
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    if not path.is_dir():  # some systems flush only what is open for writing
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDWR)
    return os.open(path, os.O_RDONLY)
