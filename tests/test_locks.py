"""A lock is a file of its own, is asked for again before each write, and only who holds it keeps others out."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tarflow import locks, storage, unfinished

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no such locks")


def link(lock: Path, target: Path) -> None:
    lock.symlink_to(target)


def dangling(lock: Path, target: Path) -> None:
    target.unlink()
    lock.symlink_to(target)


def hard_link(lock: Path, target: Path) -> None:
    lock.hardlink_to(target)


def pipe(lock: Path, target: Path) -> None:
    os.mkfifo(lock)


@pytest.mark.parametrize("plant", [link, dangling, hard_link, pipe])
@pytest.mark.parametrize("hold", [locks.exclusive, locks.exclusive_name])
def test_what_was_put_in_the_place_of_a_lock_is_not_written_to(
    plant: Callable[[Path, Path], None], hold: Callable[[Path], object], tmp_path: Path
) -> None:
    target, out = tmp_path / "target", tmp_path / "out"
    out.mkdir()
    target.write_text("precious")
    lock = out / ".lock" if hold is locks.exclusive else tmp_path / ".out.lock"
    plant(lock, target)
    with pytest.raises(OSError, match=r"\.lock: a link, or no plain file") as raised, hold(out):  # type: ignore[attr-defined]
        pass
    assert str(lock) in str(raised.value)
    if hold is locks.exclusive:
        with pytest.raises(OSError, match="a link"):
            locks.check_not_in_use(out)
    assert plant is dangling or target.read_text() == "precious"
    assert target.exists() != (plant is dangling)


def test_text_is_appended_to_no_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / "metrics.jsonl").symlink_to("target")
    with pytest.raises(OSError, match=r"metrics\.jsonl: a symbolic link"):
        storage.append_text(tmp_path / "metrics.jsonl", "more")
    assert (tmp_path / "target").read_text() == "precious"


def test_a_file_that_is_replaced_was_no_link_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first name is drawn at random. Whoever guesses it all the same has no link followed."""

    class Known:
        hex = "0" * 32

    import uuid

    (tmp_path / "target").write_text("precious")
    monkeypatch.setattr(uuid, "uuid4", Known)
    with storage.replacing_file(tmp_path / "a") as temporary:
        assert temporary == unfinished.sibling(tmp_path / "a"), "the name is the one that is known"
    temporary.symlink_to("target")
    with pytest.raises(FileExistsError), storage.replacing_file(tmp_path / "a"):
        pass
    assert (tmp_path / "target").read_text() == "precious"


# --- asking again ----------------------------------------------------------------------------------------------------


def moved(run: Path) -> str:
    run.rename(run.with_name("elsewhere"))
    return "elsewhere"


def removed(run: Path) -> str:
    shutil.rmtree(run)
    return "removed, or replaced by another"


def moved_and_begun_anew(run: Path) -> str:
    moved(run)
    run.mkdir()
    (run / ".lock").touch()
    return "elsewhere"


def removed_and_begun_anew(run: Path) -> str:
    removed(run)
    run.mkdir()
    return "replaced by another"


def without_its_lock(run: Path) -> str:
    (run / ".lock").unlink()
    return r"its \.lock was removed"


def with_the_lock_of_another(run: Path) -> str:
    (run / ".lock").unlink()
    (run / ".lock").touch()
    return r"its \.lock was removed or replaced"


LOSSES = [moved, removed, moved_and_begun_anew, removed_and_begun_anew, without_its_lock, with_the_lock_of_another]


@pytest.mark.parametrize("lose", LOSSES)
def test_what_is_lost_is_found_and_a_lock_of_another_stays(lose: Callable[[Path], str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with locks.exclusive(run) as hold:
        hold.check()
        words = lose(run)
        for _ in range(2):
            with pytest.raises(locks.Lost, match=rf"run: .*{words}"):
                hold.check()
        others = (run / ".lock").exists()
    assert (run / ".lock").exists() == others, "what another process holds by now"
    with contextlib.suppress(FileNotFoundError), locks.exclusive(run):
        pass


@pytest.mark.parametrize("lose", [moved, removed, removed_and_begun_anew])
def test_it_is_found_without_locks_too(
    lose: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    run = tmp_path / "run"
    run.mkdir()
    with locks.exclusive(run) as hold:
        hold.check()
        lose(run)
        with pytest.raises(locks.Lost):
            hold.check()


# --- who asks --------------------------------------------------------------------------------------------------------


def test_who_only_asks_keeps_nobody_out_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale lock that two look at in the same moment, and one who begins."""
    import fcntl

    usual = locks.WAIT_SECONDS
    (tmp_path / ".lock").write_text("process 1 on a machine that is gone")
    for begins in (False, True):
        asking = os.open(tmp_path / ".lock", os.O_RDONLY)
        fcntl.flock(asking, fcntl.LOCK_EX)  # another one who asks
        leaving = threading.Timer(locks.POLL_SECONDS, os.close, [asking])
        leaving.start()
        monkeypatch.setattr(locks, "WAIT_SECONDS", 60.0)  # on a busy machine the other thread may come to it late
        locks.check_not_in_use(tmp_path)
        monkeypatch.setattr(locks, "WAIT_SECONDS", usual)
        if begins:
            with locks.exclusive(tmp_path), pytest.raises(locks.InUse, match=rf"process {os.getpid()} on"):
                locks.check_not_in_use(tmp_path)
        leaving.join()
