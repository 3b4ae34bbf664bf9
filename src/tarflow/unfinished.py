"""The hidden siblings in which files and directories are made: their names, whose they are, which were left behind.

A name says which process on which machine writes to it, so that what a killed one left can be told from what another
is writing just now, and is cleared away by the next that writes into the same directory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import socket
import sys
import time
import uuid
from pathlib import Path

MARK = ".partial-"
SHOWN_NAME_BYTES = 100  # bytes of a name that its sibling shows: some encrypted file systems allow 143 in all
ABANDONED_SECONDS = 86_400  # seconds after which nobody writes to it any more, whoever began it
_OURS = re.compile(r"([0-9a-f]{8})-([0-9]{1,9})-[0-9a-f]{8}")


def sibling(path: Path) -> Path:
    """A new hidden name beside `path`."""
    return path.with_name(f".{stem(path.name)}{MARK}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def stem(name: str) -> str:
    """What stands for `name` in hidden names: itself, or a digest where it is too long to be extended."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= SHOWN_NAME_BYTES else hashlib.blake2b(encoded, digest_size=16).hexdigest()


def remove_leftovers(directory: str | Path, name: str | None = None) -> None:
    """Remove what is half-written in `directory`, all of it or that of the one entry `name`.

    For who holds the lock on it: nobody else writes there.
    """
    start = "." if name is None else f".{stem(name)}{MARK}"
    for path in _hidden(directory):
        if path.name.startswith(start):
            _remove(path)


@functools.cache
def remove_abandoned(directory: Path) -> None:
    """Remove what killed processes of this user left half-written in `directory`: once in the life of a process.

    What a living process of this machine may be writing to stays, and for a day what may be another machine's.
    """
    for path in _hidden(directory):
        with contextlib.suppress(OSError):
            if _is_abandoned(path):
                _remove(path)


def _hidden(directory: str | Path) -> list[Path]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        return [Path(entry.path) for entry in entries if entry.name.startswith(".") and MARK in entry.name]
    return []


def _is_abandoned(path: Path) -> bool:
    stat = path.lstat()
    if sys.platform != "win32" and stat.st_uid != os.geteuid():
        return False
    if time.time() - stat.st_mtime > ABANDONED_SECONDS:
        return True
    made = _OURS.fullmatch(path.name.rpartition(MARK)[2])
    return made is not None and made[1] == _machine() and not _is_alive(int(made[2]))


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":
        return True  # where asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@functools.cache
def _machine() -> str:
    """Identifies the machine, its boot and the container, within which the number of a process is unique."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\0".join(parts).encode(errors="replace"), digest_size=4).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
