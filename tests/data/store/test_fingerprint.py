"""Whether a source has changed: names, sizes and times for the quick digest, names and contents for the sure one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tarflow.data.sources import open_source
from tarflow.data.store.fingerprint import content_digest, files_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for k in range(3):
        Image.fromarray(np.full((4, 4), 50 * k, np.uint8)).save(tmp_path / "photos" / f"{k}.bmp")  # all of one size
    return tmp_path / "photos"


def digests(folder: Path) -> tuple[str, str]:
    """By names, sizes and times; by names and contents."""
    opened = open_source(str(folder))
    return files_digest(opened), content_digest(opened)


def rename(folder: Path) -> None:
    (folder / "1.bmp").rename(folder / "1a.bmp")  # in the same place of the order


def swap(folder: Path) -> None:
    """Two names for each other's contents, with the sizes and times that the names had."""
    times = [(folder / f"{k}.bmp").stat().st_mtime_ns for k in (0, 1)]
    shutil.move(folder / "0.bmp", folder / "tmp")
    shutil.move(folder / "1.bmp", folder / "0.bmp")
    shutil.move(folder / "tmp", folder / "1.bmp")
    for k, time in enumerate(times):
        os.utime(folder / f"{k}.bmp", ns=(time, time))


def change_a_pixel(folder: Path) -> None:
    data = bytearray((folder / "1.bmp").read_bytes())
    data[-1] ^= 1
    (folder / "1.bmp").write_bytes(data)


def grow(folder: Path) -> None:
    with open(folder / "1.bmp", "ab") as file:
        file.write(b"\0")


def touch(folder: Path) -> None:
    os.utime(folder / "1.bmp", ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (rename, (True, True)),
        (swap, (False, True)),  # which no quick look can see
        (grow, (True, True)),
        (touch, (True, False)),
        (lambda folder: (folder / "2.bmp").unlink(), (True, True)),
        (lambda folder: (folder / "notes.txt").write_text("no image"), (False, False)),
    ],
    ids=["renamed", "swapped", "grown", "touched", "removed", "another file"],
)
def test_each_digest_sees_what_it_says(change, expected, folder: Path) -> None:  # type: ignore[no-untyped-def]
    before = digests(folder)
    assert digests(folder) == before
    change(folder)
    assert tuple(new != old for new, old in zip(digests(folder), before, strict=True)) == expected


def test_a_pixel_changes_the_sure_one_and_its_time_the_quick_one(folder: Path) -> None:
    before = digests(folder)
    time = (folder / "1.bmp").stat().st_mtime_ns
    change_a_pixel(folder)
    os.utime(folder / "1.bmp", ns=(time + 10**9, time + 10**9))
    after = digests(folder)
    assert after[0] != before[0] and after[1] != before[1]


def test_a_copy_elsewhere_is_the_same_but_for_its_times(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    first, second = digests(folder), digests(tmp_path / "copy")
    assert first[1] == second[1] and first[0] != second[0]


def test_a_set_in_no_file_has_the_digest_of_its_contents() -> None:
    opened = open_source("digits")
    assert files_digest(opened) == content_digest(opened) == content_digest(open_source("digits"))
