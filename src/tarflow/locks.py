"""One process writes: a lock on a directory or a name, and whether it still is what was locked.

The lock is the system's, on a hidden file, taken by `filelock`. It goes with the process, also by `kill -9`: what a
killed one leaves is a file that nobody holds. On a file system without locks nobody is kept out.

A directory may be moved, removed or replaced while somebody writes there, and its lock with it. So whoever holds one
asks `Hold.check` each time before writing: a path says where something was, and not what is there now.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tarflow import unfinished

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_FILE = ".lock"
WAIT_SECONDS, POLL_SECONDS = 0.1, 0.02  # whoever only asks whether a directory is in use holds its lock for a moment
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks answer


class InUse(OSError):
    """A directory that another process is writing to."""


class Lost(OSError):
    """A directory that is not the one any more that was locked, or whose lock is not ours any more."""


class Hold:
    """What this process alone writes to: a directory, or a name in one.

    Args:
        path: what is held, as the messages call it. lock: the file that stands for it.
    """

    def __init__(self, path: Path, lock: Path) -> None:
        self.path, self.lock = path, lock
        self.held = _acquire(lock, path)
        self.identity = None if self.held is None else os.lstat(lock)
        self.directory: int | None = None  # open, so that its number is not given to another one
        with contextlib.suppress(OSError):  # Windows opens no directories
            self.directory = os.open(lock.parent, os.O_RDONLY)
        self.place = os.stat(lock.parent)

    def check(self) -> None:
        """Raise Lost unless `path` is what was locked, and the lock is ours. To be asked before each write."""
        if not _is_still(self.place, self.lock.parent):
            now = self._moved_to()
            raise Lost(
                f"{self.path}: moved to {now} while it was written to; go on there"
                if now is not None
                else f"{self.path}: removed, or replaced by another, while it was written to"
            )
        if self.identity is not None and not _is_still(self.identity, self.lock):
            raise Lost(f"{self.path}: its {self.lock.name} was removed or replaced; another process may write to it")

    def close(self) -> None:
        """Let others write there."""
        if self.held is not None:
            with contextlib.suppress(OSError):
                if self.identity is not None and _is_still(self.identity, self.lock):  # and not that of another
                    self.lock.unlink()  # while it is held; whoever has opened it already sees that it lost its name
            self.held.release()
        if self.directory is not None:
            os.close(self.directory)

    def _moved_to(self) -> str | None:
        """Where the directory is now, where the system tells."""
        with contextlib.suppress(OSError):
            now = os.readlink(f"/proc/self/fd/{self.directory}")
            return now if _is_still(self.place, Path(now)) else None
        return None


@contextlib.contextmanager
def exclusive(directory: str | Path) -> Iterator[Hold]:
    """Keep every other process out of `directory` that asks in the same way, until the block or this process ends.

    Raises:
        InUse: another process is in it; the message names the process, where that is known.
    """
    with contextlib.closing(Hold(Path(directory), Path(directory) / LOCK_FILE)) as hold:
        yield hold


@contextlib.contextmanager
def exclusive_name(path: str | Path) -> Iterator[Hold]:
    """`exclusive` for what is to appear under the name `path` as a whole: the lock is a hidden sibling of it.

    A lock within the directory would be renamed away with what it replaces.
    """
    path = behind_links(path)
    with contextlib.closing(Hold(path, path.with_name(f".{unfinished.stem(path.name)}{LOCK_FILE}"))) as hold:
        yield hold


def behind_links(path: str | Path) -> Path:
    """What has the name in truth, where it is a symbolic link."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def check_not_in_use(directory: str | Path) -> None:
    """Raise InUse where another process is in `directory` just now. It holds the lock itself for a moment."""
    lock = Path(directory) / LOCK_FILE
    if os.path.lexists(lock) and (held := _acquire(lock, Path(directory))) is not None:
        held.release()


def _acquire(lock: Path, path: Path) -> BaseFileLock | None:
    """The lock of a file, held by us alone, or None where there are no locks. Raises InUse of `path`."""
    from filelock import FileLock, Timeout

    if os.path.lexists(lock):  # a file of its own: through a link something else would be written to
        facts = os.lstat(lock)
        if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
            raise OSError(f"{lock}: a link, or no plain file; expected one that only stands for a lock; remove it")
    held = FileLock(lock, timeout=WAIT_SECONDS, thread_local=False)
    try:
        os.stat(lock.parent)  # which filelock would make
        held.acquire(poll_interval=POLL_SECONDS)
        _write_holder(lock)
    except Timeout:
        holder = "another process"
        with contextlib.suppress(OSError):
            holder = lock.read_text(errors="replace")[:200] or holder
        raise InUse(f"{path}: {holder} is writing to it; wait until it ends, or name another") from None
    except OSError as error:
        held.release()
        if error.errno in _NO_LOCKS:
            return None
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    return held


def _write_holder(lock: Path) -> None:
    """Write into a lock that is ours who holds it."""
    flags = os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(PermissionError):  # Windows lets nobody write into what is locked
        descriptor = os.open(lock, flags)
        try:
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        finally:
            os.close(descriptor)


def _is_still(identity: os.stat_result, path: Path) -> bool:
    """Whether what was found before has the name `path`."""
    try:
        return os.path.samestat(identity, os.lstat(path))
    except OSError:
        return False
