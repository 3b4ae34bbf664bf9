"""A stream holds the same pixels in the same order as `load_all`, and what cannot be read in its place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tarflow.data.errors import DataError
from tarflow.data.load import Scan, ScannedImage, load, load_all, load_held_out, open_scan
from tarflow.data.options import LoadOptions
from tarflow.data.readers.folder import image_names, open_folder
from tarflow.data.records import RowNames


def write(path: Path, value: int, size: tuple[int, int] = (4, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def grey(source: Path | str, levels: int = 256) -> Scan:
    return open_scan(str(source), image_size=(4, 4), channels=1, levels=levels)


def same(records: list[ScannedImage], source: str, size: tuple[int, int], levels: int) -> None:
    """Equal to `load_all`, record by record."""
    images, _ = load_all(source, image_size=size, channels=1, levels=levels)
    assert [record.index for record in records] == list(range(len(images)))
    assert tuple(record.name for record in records) == images.names
    assert torch.equal(torch.stack([record.pixels for record in records if record.pixels is not None]), images.images)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for i, name in enumerate(["b/2.png", "b/10.png", "a/x/1.png", "a-b/1.png", "a/0.png", "c.d/z.PNG"]):
        write(tmp_path / name, 10 * i)
    records = list(grey(tmp_path))
    assert [r.name for r in records] == ["a/0.png", "a/x/1.png", "a-b/1.png", "b/10.png", "b/2.png", "c.d/z.PNG"]
    assert [int(r.pixels.unique()) for r in records if r.pixels is not None] == [40, 20, 30, 10, 0, 50]
    same(records, str(tmp_path), (4, 4), 256)


def test_folders_need_no_order_among_classes_and_splits(tmp_path: Path) -> None:
    """What `load` refuses, for it would not know the labels, has a likelihood all the same."""
    for name in ("loose.png", "train/cat/1.png", "test/2.png"):
        write(tmp_path / name, 9)
    with pytest.raises(DataError):
        load_all(str(tmp_path))
    assert [r.name for r in grey(tmp_path)] == ["loose.png", "test/2.png", "train/cat/1.png"]


def test_more_than_a_window_of_images_and_bad_ones_among_them(tmp_path: Path) -> None:
    for i in range(300):
        write(tmp_path / f"{i:03}.png", i % 256, (5, 6) if i % 2 else (4, 4))
    (tmp_path / "005.png").write_bytes(b"no image")
    (tmp_path / "299.png").write_bytes(b"")
    (tmp_path / "300.png").symlink_to(tmp_path / "nowhere.png")
    stream = grey(tmp_path)
    assert stream.total == 301
    for _ in range(2):  # a stream can be read again
        records = list(stream)
        assert [r.index for r in records] == list(range(301))
        assert {r.index: r.problem for r in records if r.pixels is None} == {
            5: "not an image, or in a format that is not read",
            299: "empty file",
            300: "No such file or directory",
        }
        assert all(int(r.pixels[0, 0, 0]) == r.index % 256 for r in records if r.pixels is not None)


def test_every_other_source_is_as_when_it_is_loaded(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path / "one.png", 77)
    encoded = (tmp_path / "one.png").read_bytes()
    pq.write_table(pa.table({"image": [encoded] * 3, "label": [0, 1, 0]}), tmp_path / "train-0.parquet")
    pq.write_table(pa.table({"image": [encoded] * 2, "label": [1, 1]}), tmp_path / "test-0.parquet")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "seven.npz", images=pixels)
    for source in (tmp_path / "one.png", tmp_path / "seven.npz", tmp_path / "test-0.parquet", tmp_path):
        same(list(grey(source)), str(source), (4, 4), 256)
    digits = open_scan("digits", image_size=(8, 8), channels=1, levels=17)
    same(list(digits), "digits", (8, 8), 17)


def test_the_held_out_images_alone_are_those_of_load(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / "own" / ("val" if i < 2 else "train") / f"{i}.png", i)
        write(tmp_path / "seeded" / f"{i}.png", i)
    (tmp_path / "own" / "train" / "bad.png").write_bytes(b"no image")  # nobody asked for it
    options = {"image_size": (3, 4), "channels": 3, "levels": 256, "held_out_fraction": 0.5, "split_seed": 1}
    for folder, skip_bad in (("own", True), ("seeded", False)):
        expected = load(str(tmp_path / folder), **options, skip_bad=skip_bad).held_out
        got = load_held_out(str(tmp_path / folder), LoadOptions(**options))
        assert got.names == expected.names and torch.equal(got.images, expected.images)


def test_levels_and_colours_are_those_of_the_model(tmp_path: Path) -> None:
    records = list(open_scan("digits", image_size=(6, 8), channels=3, levels=256))[:5]
    images, _ = load_all("digits", image_size=(6, 8), channels=3, levels=256)
    assert torch.equal(torch.stack([r.pixels for r in records if r.pixels is not None]), images.images[:5])


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png", 1)
    write(tmp_path / "other" / "b.png", 2)
    (tmp_path / "in" / "up").symlink_to(tmp_path / "in", target_is_directory=True)
    (tmp_path / "in" / "over").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    os.mkfifo(tmp_path / "in" / "pipe.png")
    assert [str(path) for path in image_names(tmp_path / "in")] == ["a.png", "over/b.png"]
    assert list(open_folder(tmp_path / "in" / "over").parts[0].names) == ["b.png"]


def test_a_stream_that_is_not_read_to_its_end_leaves_nothing_running(tmp_path: Path) -> None:
    import threading

    for i in range(20):
        write(tmp_path / f"{i}.png", i)
    before = set(threading.enumerate())
    records = iter(grey(tmp_path))
    next(records)
    records.close()
    assert not set(threading.enumerate()) - before


def test_names_of_rows_are_a_sequence() -> None:
    names = RowNames([("a", 2), ("empty", 0), ("b", 3)])
    assert len(names) == 5
    assert list(names) == ["a:0", "a:1", "b:0", "b:1", "b:2"]
    assert names[-1] == "b:2"
    with pytest.raises(IndexError):
        names[5]
    assert list(RowNames([])) == []


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("{p}/nowhere", {}, FileNotFoundError, "nowhere"),
        ("digit", {}, FileNotFoundError, "perhaps digits"),
        ("{p}/empty", {}, DataError, "empty: holds no images"),
        ("{p}/text.txt", {}, DataError, "text.txt: expected a folder"),
        ("digits", {"channels": 4}, DataError, r"channels: expected 1 \(grey\) or 3"),
        ("digits", {"levels": 1}, ValueError, "levels: expected 2 to 256, got 1"),
    ],
)
def test_what_is_no_stream_is_refused_at_once(
    tmp_path: Path, source: str, options: dict[str, int], error: type[Exception], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(error, match=message):
        open_scan(source.format(p=tmp_path), **{"image_size": (4, 4), "channels": 1, "levels": 256} | options)
