"""One process writes: a lock on a directory or a name, and whether it still is what was locked.

The lock is the system's (`flock` on a hidden file), and goes with the process, also by `kill -9`: what a killed one
leaves is a file that nobody holds. Where there are no such locks nobody is kept out.

A directory may be moved, removed or replaced while somebody writes there, and its lock with it. So whoever holds one
asks `Hold.check` each time before writing: a path says where something was, and not what is there now.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tarflow import unfinished

if sys.platform != "win32":
    import fcntl

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks answer
_TRIES, _PAUSE = 5, 0.02  # whoever only asks whether a directory is in use holds its lock for a moment


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
        self.descriptor = _take(lock, path)
        self.directory: int | None = None  # open, so that its number is not given to another one
        with contextlib.suppress(OSError):  # Windows opens no directories
            self.directory = os.open(lock.parent, os.O_RDONLY)
        self.place = os.stat(lock.parent)

    def check(self) -> None:
        """Raise Lost unless `path` is what was locked, and the lock is ours. To be asked before each write."""
        if not self._in_place():
            now = self._moved_to()
            raise Lost(
                f"{self.path}: moved to {now} while it was written to; go on there"
                if now is not None
                else f"{self.path}: removed, or replaced by another, while it was written to"
            )
        if self.descriptor is not None and not _is_still(self.descriptor, self.lock):
            raise Lost(f"{self.path}: its {self.lock.name} was removed or replaced; another process may write to it")

    def close(self) -> None:
        """Let others write there."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                if _is_still(self.descriptor, self.lock):  # and not that of another, who came after it was lost
                    self.lock.unlink()  # while it is held; whoever has opened it already sees that it lost its name
        for descriptor in (self.descriptor, self.directory):
            if descriptor is not None:
                os.close(descriptor)

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(self.place, os.stat(self.lock.parent))
        except OSError:
            return False

    def _moved_to(self) -> str | None:
        """Where the directory is now, where the system tells."""
        with contextlib.suppress(OSError):
            now = os.readlink(f"/proc/self/fd/{self.directory}")
            if os.path.samestat(self.place, os.stat(now)):
                return now
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
    """Raise InUse where another process is in `directory` just now. Several may ask at once."""
    lock = Path(directory) / LOCK_FILE
    if sys.platform != "win32" and os.path.lexists(lock):
        with contextlib.suppress(FileNotFoundError):  # its holder has left in between
            descriptor = _open(lock, Path(directory), os.O_RDONLY)
            try:
                _flock(descriptor, Path(directory), fcntl.LOCK_SH)
            finally:
                os.close(descriptor)


def _take(lock: Path, path: Path) -> int | None:
    """The open file `lock`, locked for us alone, or None where there are no locks. Raises InUse of `path`."""
    if sys.platform == "win32":
        return None
    while True:
        descriptor = _open(lock, path, os.O_RDWR | os.O_CREAT)
        try:
            if not _flock(descriptor, path, fcntl.LOCK_EX):
                os.close(descriptor)
                return None
            if _is_still(descriptor, lock):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except InUse:
            os.close(descriptor)
            raise
        except OSError as error:
            os.close(descriptor)
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
        os.close(descriptor)  # its holder has removed it between our opening and locking it: that of the next is new


def _open(lock: Path, path: Path, flags: int) -> int:
    """Open a lock, which is a file of its own: through a link something else would be written to."""
    try:
        descriptor = os.open(lock, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:  # of the hidden file; who asks has never heard of it
        if os.path.islink(lock):
            raise _no_lock(lock) from None
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink > 1:
        os.close(descriptor)
        raise _no_lock(lock)
    return descriptor


def _no_lock(lock: Path) -> OSError:
    return OSError(f"{lock}: a link, or no plain file; expected one that only stands for a lock; remove it")


def _flock(descriptor: int, path: Path, kind: int) -> bool:
    """Lock an open file, or False where there are no locks. Raises InUse of `path` where another process holds it."""
    for tries_left in reversed(range(_TRIES)):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if tries_left == 0:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                raise InUse(f"{path}: {holder} is writing to it; wait until it ends, or name another") from None
            time.sleep(_PAUSE)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
    raise AssertionError


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether the open file has the name `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False
