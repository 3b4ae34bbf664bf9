"""C of this folder, compiled where there is a compiler for it, and loaded: for what PyTorch's operations are slow at.

A source is compiled into the user's cache once for each kind of processor, in a second or two, and loaded from there
afterwards, where it is still what was compiled and nobody else can have put it there. Without GCC and the OpenMP that
PyTorch brings on Linux, or with TARFLOW_NATIVE=0 in the environment, there is none of it, and who asked for it does the
same work with PyTorch's operations.

A new source is a file `NAME.c` here, which may include `vectors.h`, and a call of `compiled` where it is used.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tarflow import digests, storage

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FLAGS = ("-O2", "-march=native", "-fopenmp", "-fno-math-errno", "-fPIC", "-shared", "-std=gnu11")
SECONDS = 120  # that a compiler may take

Pointer = ctypes.c_void_p
Number = ctypes.c_int64


class Function(NamedTuple):
    """A function of a source: the types of its arguments and of its result, as ctypes has them."""

    name: str
    arguments: tuple[Any, ...] = ()
    result: Any = None


@functools.cache
def compiled(name: str, functions: tuple[Function, ...]) -> ctypes.CDLL | None:
    """The compiled `NAME.c`, made at the first call; None where no compiler can make it, and the log says why."""
    if os.environ.get("TARFLOW_NATIVE", "1") == "0":
        return None
    # PyTorch's own OpenMP. The threads of a second one would wait, busily, on the same cores.
    threads = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    compilers = list(filter(None, map(shutil.which, [os.environ.get("CC") or "gcc", "cc"])))
    if not threads or not compilers:
        log.info("no native code: %s", "no C compiler" if threads else "this PyTorch has no libgomp")
        return None
    # Told to look, the linker finds now what another OpenMP would lack when it is loaded.
    libraries = ("-nodefaultlibs", str(threads[0]), "-lm", "-lc", "-lgcc", "-Wl,-z,defs")
    source = FOLDER / f"{name}.c"
    for compiler in compilers:
        try:
            return _typed(_made(source, (compiler, *FLAGS, str(source), *libraries)), functions)
        except (OSError, subprocess.SubprocessError) as error:
            log.info("no native code: %s %s", error, getattr(error, "stderr", None) or "")
    return None


def _typed(result: ctypes.CDLL, functions: tuple[Function, ...]) -> ctypes.CDLL:
    """The library with the types of its functions."""
    for function in functions:
        found = getattr(result, function.name)
        found.argtypes, found.restype = function.arguments, function.result
    return result


def _made(source: Path, command: Sequence[str]) -> ctypes.CDLL:
    """The library that `command` makes of a source and the headers beside it, from the cache where it is there."""
    sources = [source, *sorted(source.parent.glob("*.h"))]
    parts = [*(file.read_bytes() for file in sources), *(word.encode() for word in command), _processor()]
    file = _folder() / f"{source.stem}-{hashlib.sha256(b''.join(parts)).hexdigest()[:32]}.so"
    if os.path.lexists(file):
        try:
            return _trusted(file)
        except OSError as error:
            log.warning("%s: %s; compiled again", file, error.strerror or error)
    with storage.replacing_file(file) as unfinished:  # whoever looks for it finds all of it
        subprocess.run([*command, "-o", str(unfinished)], check=True, capture_output=True, text=True, timeout=SECONDS)
        contents = unfinished.read_bytes()
        unfinished.write_bytes(contents + digests.seal(contents))  # behind it, which the loader passes over
    with contextlib.suppress(OSError):
        file.chmod(0o600)  # a compiler leaves what the umask allows
    return _trusted(file)


def _trusted(file: Path) -> ctypes.CDLL:
    """Load what this user wrote, what is all there, and nobody else can change. Raises OSError where it is not that.

    It is loaded by the number of the open file and not by its name, so that it is the one that was looked at.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW)
    with open(descriptor, "rb", closefd=False) as opened:
        contents = opened.read()
    problem = _open_to_others(os.fstat(descriptor))
    if problem is None and digests.opened(contents) is None:
        problem = "damaged"
    if problem is not None:
        os.close(descriptor)
        raise OSError(problem)
    number = f"/proc/self/fd/{descriptor}"  # open as long as the process, so that no other library has this name
    return ctypes.CDLL(number if os.path.exists(number) else str(file))


def _open_to_others(facts: os.stat_result) -> str | None:
    """Who else could have written what is to be run; None where nobody could."""
    if facts.st_uid != os.geteuid():
        return f"belongs to user {facts.st_uid}"
    return "others may write to it" if facts.st_mode & 0o022 else None


@functools.cache
def _folder() -> Path:
    """Where compiled code is kept: this user's own folder in the cache, else one of this process.

    A cache may be shared, or lie where others write, and what is in it is run: so the folder is ours alone.
    """
    if (cache := storage.cache_directory()) is not None:
        folder = cache / f"native-{os.geteuid()}"
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            facts = folder.lstat()
            problem = _open_to_others(facts) if stat.S_ISDIR(facts.st_mode) else "not a directory"
            if problem is None and os.access(folder, os.W_OK):
                return folder
            log.warning("%s: %s; not used for compiled code", folder, problem or "cannot be written to")
        except OSError as error:
            log.info("%s: %s", folder, error)
    own = Path(tempfile.mkdtemp(prefix="tarflow-"))
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def _processor() -> bytes:
    """What -march=native depends on: a home directory may be shared by machines of several kinds."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
        return b"".join(sorted({line for line in lines if line.lower().startswith((b"flags", b"features", b"model"))}))
    return f"{platform.machine()} {platform.processor()}".encode()
