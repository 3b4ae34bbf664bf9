"""Work in a forked process, which may be killed, or have a file system of its own, and leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

_NEW_MOUNTS, _NEW_USER = 0x20000, 0x10000000
_PRIVATE, _REMOUNT = 0x40000 | 0x4000, 0x20


def fork(work: Callable[[], int | None]) -> int:
    """Do `work` in a forked process, whose exit code is what it returns, or 1 after an exception; its id."""
    with warnings.catch_warnings(action="ignore"):  # newer versions of Python warn of forks beside threads
        pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)  # who computes with one misses none of the threads that a fork leaves behind
        code = work() or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)


def exit_code(pid: int, seconds: float = 60.0) -> int:
    """The exit code of a child, or minus the signal that ended it. One that takes longer is killed, and an error."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise TimeoutError(f"the child took more than {seconds} s")
        time.sleep(0.005)


def wait_for(file: Path, pid: int, seconds: float = 60.0) -> None:
    """Until there is the file by which a child says where it is. One that ends before or takes longer is an error."""
    until = time.monotonic() + seconds
    while not file.exists():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None and not file.exists():
            raise RuntimeError(f"the child ended before there was {file}: {exit_code(pid)}")
        if time.monotonic() > until:
            raise TimeoutError(f"there is no {file} after {seconds} s")
        time.sleep(0.002)


def mount_small_disk(path: Path, size: str) -> bool:
    """Mount a tmpfs of `size` on `path`, for this process alone. False where that is not allowed."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(_NEW_MOUNTS) != 0:
        if libc.unshare(_NEW_USER | _NEW_MOUNTS) != 0:
            return False
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    if libc.mount(b"none", b"/", None, _PRIVATE, None) != 0:
        return False
    return libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={size}".encode()) == 0


def resize_disk(path: Path, size: str) -> None:
    """Give what `mount_small_disk` made another size."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", _REMOUNT, f"size={size}".encode()) != 0:
        raise OSError(ctypes.get_errno(), "the disk keeps its size")
