"""Writing a file or a directory whole or not at all.

Everything goes to a hidden sibling first, is flushed to the disk, and takes its name in one `rename`, which the file
system makes atomic. A process killed at any moment leaves either the old contents or the new ones, and at worst a
hidden sibling, which the next who writes there clears away. The exception is a directory written over an older one,
which no file system renames in one step: killed between the two, neither has its name.

`locks` keeps a second process out.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from tarflow import unfinished
from tarflow.jsontext import to_json
from tarflow.locks import InUse as InUse
from tarflow.locks import behind_links as behind_links
from tarflow.locks import check_not_in_use as check_not_in_use
from tarflow.locks import exclusive as exclusive
from tarflow.locks import exclusive_name as exclusive_name
from tarflow.unfinished import remove_leftovers as remove_leftovers

# What file systems and other systems answer where a directory, or what is open for reading, is not flushed.
_NOT_FLUSHED = (
    *(errno.EINVAL, errno.EPERM, errno.EACCES, errno.EBADF, errno.EISDIR),
    *(errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY),
)


class DamageWarning(UserWarning):
    """A damaged file was passed over, and an older one is used."""


@contextlib.contextmanager
def replacing_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write to; when the block ends well it becomes `path`, otherwise it is removed."""
    path = Path(path)
    with naming(path):
        temporary = _begun(path)
        try:
            temporary.touch(exist_ok=False)  # nobody's link is followed
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


def check_writable(path: str | Path) -> None:
    """Raise OSError naming `path` where no file of that name can be written: before hours of work, not after."""
    path = Path(path)
    with naming(path):
        temporary = _begun(path)
        temporary.touch(exist_ok=False)
        temporary.unlink()


def check_vacant(path: str | Path, option: str = "", *, ours: Collection[str] = ()) -> None:
    """Raise FileExistsError unless `path` is missing, or a directory that holds nothing but entries named in `ours`.

    Hidden entries do not count: systems leave them where somebody has looked at a directory. `option` is what `path`
    was given by.
    """
    path = Path(path)
    name = f"{option} {path}".lstrip()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{name}: a file; expected a new or an empty directory")
    entries = [entry.name for entry in path.iterdir()] if path.exists() else []
    foreign = sorted(entry for entry in entries if not entry.startswith(".") and entry not in ours)
    if foreign:
        what = "1 entry" if len(foreign) == 1 else f"{len(foreign)} entries"
        raise FileExistsError(f"{name}: holds {what} already, such as {foreign[0]}; give a new or an empty directory")


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
    """Flush a file, or the names in a directory, to the disk, where the file system does that."""
    try:
        descriptor = _opened(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FLUSHED:
            raise


def _opened(path: Path) -> int:
    if not path.is_dir():  # some systems flush only what is open for writing
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDWR)
    return os.open(path, os.O_RDONLY)
