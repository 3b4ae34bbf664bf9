"""Whether a source has changed: by the names, sizes and times of its files."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tarflow.data.records import Records
from tarflow.data.sources import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for k in range(3):
        Image.fromarray(np.full((4, 4), 50 * k, np.uint8)).save(tmp_path / "photos" / f"{k}.bmp")  # all of one size
    return tmp_path / "photos"


def digest(folder: Path) -> str:
    return open_source(str(folder)).files_digest()


def rename(folder: Path) -> None:
    (folder / "1.bmp").rename(folder / "1a.bmp")  # in the same place of the order


def grow(folder: Path) -> None:
    with open(folder / "1.bmp", "ab") as file:
        file.write(b"\0")


def touch(folder: Path) -> None:
    os.utime(folder / "1.bmp", ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (rename, True),
        (grow, True),
        (touch, True),
        (lambda folder: (folder / "2.bmp").unlink(), True),
        (lambda folder: (folder / "notes.txt").write_text("no image"), False),
    ],
    ids=["renamed", "grown", "touched", "removed", "another file"],
)
def test_the_digest_sees_what_it_says(change, seen: bool, folder: Path) -> None:  # type: ignore[no-untyped-def]
    before = digest(folder)
    assert digest(folder) == before
    change(folder)
    assert (digest(folder) != before) == seen


def test_a_copy_elsewhere_is_the_same_but_for_its_times(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert digest(folder) == digest(tmp_path / "copy")
    touch(tmp_path / "copy")
    assert digest(folder) != digest(tmp_path / "copy")


def test_a_set_in_no_file_has_the_digest_of_its_pixels() -> None:
    opened = open_source("digits")
    assert opened.files_digest() == open_source("digits").files_digest()
    fewer = dataclasses.replace(opened, parts=(Records("all", ["digits:0"], [0], opened.parts[0].read),))
    assert fewer.files_digest() != opened.files_digest()
