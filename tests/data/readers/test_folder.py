"""Folders of images: classes, splits, links, and what is not an image."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tarflow.data.errors import DataError
from tarflow.data.load import load, load_all

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a 4x4 grey image of one value, or anything else, under the temporary folder."""

    def write(name: str, value: int | bytes = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)
        return path

    return write


def test_a_flat_folder_is_read_in_sorted_order(tmp_path: Path, write: Write) -> None:
    for value, name in enumerate(["b.png", "a.PNG", "c.bmp", "10.pgm"]):
        write(name, value)
    write("notes.txt", b"no image")
    write(".hidden.png", 9)
    write(".hidden/x.png", 9)
    images, skipped = load_all(str(tmp_path))
    assert images.names == ("10.pgm", "a.PNG", "b.png", "c.bmp")
    assert images.images[:, 0, 0, 0].tolist() == [3, 1, 0, 2]
    assert images.labels is None
    assert skipped == ()


def test_class_folders_are_labels(tmp_path: Path, write: Write) -> None:
    write("dog/1.png", 10)
    write("cat/deep/er/2.png", 20)
    write("cat/3.png", 30)
    write("empty/readme.txt", b"")
    images, _ = load_all(str(tmp_path))
    assert images.class_names == ("cat", "dog")
    assert images.names == ("cat/3.png", "cat/deep/er/2.png", "dog/1.png")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 0, 1]


def test_images_beside_class_folders_are_an_error(tmp_path: Path, write: Write) -> None:
    write("cat/1.png")
    write("dog/1.png")
    write("stray.png")
    with pytest.raises(DataError, match="1 images lie beside the class folders cat, dog"):
        load(str(tmp_path))


@pytest.mark.parametrize("held_out", ["val", "Valid", "VALIDATION", "test"])
def test_split_folders_with_classes(held_out: str, tmp_path: Path, write: Write) -> None:
    write("Train/cat/1.png", 1)
    write("Train/dog/1.png", 2)
    write(f"{held_out}/dog/1.png", 3)
    splits = load(str(tmp_path))
    assert splits.own_split
    assert splits.train.names == ("Train/cat/1.png", "Train/dog/1.png")
    assert splits.held_out.names == (f"{held_out}/dog/1.png",)
    assert splits.held_out.class_names == ("cat", "dog")
    assert splits.held_out.labels is not None
    assert splits.held_out.labels.tolist() == [1]


def test_of_three_splits_validation_is_held_out_and_all_are_read_in_order(tmp_path: Path, write: Write) -> None:
    for value, name in enumerate(["test/1.png", "train/1.png", "val/1.png"]):
        write(name, value)
    assert load(str(tmp_path)).held_out.names == ("val/1.png",)
    assert load_all(str(tmp_path))[0].names == ("train/1.png", "val/1.png", "test/1.png")


def test_a_split_folder_alone_is_no_class(tmp_path: Path, write: Write) -> None:
    for i in range(4):
        write(f"train/{i}.png", i)
    splits = load(str(tmp_path), held_out_fraction=0.5)
    assert not splits.own_split
    assert splits.train.labels is None
    assert len(splits.train) == 2


def test_a_class_may_be_called_train(tmp_path: Path, write: Write) -> None:
    for name in ("bus", "train", "tram"):
        write(f"{name}/1.png")
    assert load_all(str(tmp_path))[0].class_names == ("bus", "train", "tram")


@pytest.mark.parametrize(("names", "message"), [
    (["train/a/1.png", "val/b/1.png"], "val: class folder 'b' has no counterpart in train/"),
    (["train/a/1.png", "val/1.png"], "the train split has labels and the validation split has none"),
    (["train/1.png", "val/1.png", "more/1.png"], "images in more/ beside the split folders train, val"),
    (["train/1.png", "val/1.png", "1.png"], r"images beside the split folders train, val \(1.png\)"),
    (["train/1.png", "val/1.png", "valid/1.png"], "val/ and valid/ are both the validation split"),
    (["train/1.png", "val/readme.txt"], "val: holds no images"),
])  # fmt: skip
def test_splits_that_do_not_fit_are_errors(names: list[str], message: str, tmp_path: Path, write: Write) -> None:
    for name in names:
        write(name, b"text" if name.endswith("txt") else 0)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path))


def test_links_are_followed_but_not_in_circles(tmp_path: Path, write: Write) -> None:
    outside = write("outside/1.png", 5).parent
    write("root/cat/1.png")
    (tmp_path / "root/linked").symlink_to(outside)
    (tmp_path / "root/cat/up").symlink_to(tmp_path / "root")
    (tmp_path / "root/cat/self").symlink_to(".")
    images, _ = load_all(str(tmp_path / "root"))
    assert images.names == ("cat/1.png", "linked/1.png")


def test_bad_files_are_named_and_can_be_skipped(tmp_path: Path, write: Write) -> None:
    good = write("good.png", 7).read_bytes()
    write("empty.png", b"")
    write("text.jpg", b"not an image")
    write("cut.png", good[: len(good) // 2])
    write("png.jpg", good)  # the content counts
    (tmp_path / "gone.png").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"4 of 6 images cannot be read \(skip_bad") as caught:
        load_all(str(tmp_path))
    assert "cut.png: " in str(caught.value)
    assert "empty.png: empty file" in str(caught.value)
    assert str(caught.value).endswith("gone.png: No such file or directory; and 1 more")
    images, skipped = load_all(str(tmp_path), skip_bad=True)
    assert images.names == ("good.png", "png.jpg")
    assert [name for name, _ in skipped] == ["cut.png", "empty.png", "gone.png", "text.jpg"]
    assert images.images.unique().tolist() == [7]


def test_skipped_files_take_their_labels_with_them(tmp_path: Path, write: Write) -> None:
    write("a/1.png", 1)
    write("a/2.png", b"bad")
    write("b/1.png", b"bad")
    write("b/2.png", 2)
    images, _ = load_all(str(tmp_path), skip_bad=True)
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1]
    assert images.names == ("a/1.png", "b/2.png")


def test_nothing_to_read_is_an_error(tmp_path: Path, write: Write) -> None:
    with pytest.raises(DataError, match=r"holds no images \(0 other files"):
        load(str(tmp_path))
    write("notes.txt", b"")
    write(".thumbs/1.png", b"")
    write(".1.png", b"")
    with pytest.raises(DataError, match=r"holds no images \(2 other files; known suffixes: .*\.png"):
        load(str(tmp_path))
    write("1.png", b"bad")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}: none of 1 images can be read; the first is 1.png: ")):
        load_all(str(tmp_path), skip_bad=True)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path, write: Write) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    write("1.png")
    assert load_all(str(tmp_path))[0].names == ("1.png",)


def test_one_image_is_a_source_too(write: Write) -> None:
    path = write("some/one.png", 77)
    images, _ = load_all(str(path))
    assert images.names == ("one.png",)
    assert images.images.shape == (1, 1, 4, 4)
    with pytest.raises(DataError, match="expected at least 2 images"):
        load(str(path))
