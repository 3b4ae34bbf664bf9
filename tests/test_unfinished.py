"""What a killed process left half-written is cleared away, and what a living one is writing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tarflow import storage, unfinished


@pytest.fixture(autouse=True)
def afresh() -> None:
    unfinished.remove_abandoned.cache_clear()


def begun_by_another(path: Path, *, killed: bool) -> subprocess.Popen[bytes]:
    """Another process that begins to write `path`, and is killed or goes on."""
    code = (
        "import os, sys, time\nfrom tarflow import storage\n"
        "with storage.replacing_file(sys.argv[1]) as t:\n    t.write_text('half')\n"
        "    print(flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    process.stdout.close()
    if killed:
        process.kill()
        process.wait()
    return process


def test_the_next_who_writes_there_clears_away_what_killed_processes_left(tmp_path: Path) -> None:
    writing = [begun_by_another(tmp_path / name, killed=False) for name in ("a", "b")]
    for process in writing:
        process.kill()
        process.wait()
    folder = unfinished.sibling(tmp_path / "folder")
    folder.mkdir()
    assert len(list(tmp_path.iterdir())) == 3
    storage.write_text(tmp_path / "c", "text")
    assert sorted(tmp_path.iterdir()) == sorted([folder, tmp_path / "c"]), "that of this process stays"


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    process = begun_by_another(tmp_path / "a", killed=False)
    try:
        storage.write_text(tmp_path / "a", "text")
        assert len(list(tmp_path.iterdir())) == 2
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", [".a.partial-0123abcd-1-0123abcd", ".a.partial-0123abcd"])
def test_of_another_machine_only_what_is_old_goes(name: str, tmp_path: Path) -> None:
    """Or of a version that wrote no number of a process."""
    (tmp_path / name).mkdir()
    storage.write_text(tmp_path / "b", "text")
    assert (tmp_path / name).exists()
    day_before = time.time() - unfinished.ABANDONED_SECONDS - 60
    os.utime(tmp_path / name, (day_before, day_before))
    unfinished.remove_abandoned.cache_clear()
    storage.write_text(tmp_path / "b", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_what_belongs_to_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun_by_another(tmp_path / "a", killed=True)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    storage.write_text(tmp_path / "b", "text")
    assert len(list(tmp_path.iterdir())) == 2


def test_names_that_only_look_like_ours_stay(tmp_path: Path) -> None:
    kept = {"a.partial-0123abcd", ".hidden", ".partial", "b"}
    for name in kept:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (0, 0))
    storage.write_text(tmp_path / "c", "text")
    assert {path.name for path in tmp_path.iterdir()} == kept | {"c"}
