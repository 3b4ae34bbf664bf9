"""Numbers of images are found by name or by row, go wherever the images go, and are part of what a run knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tarflow.data.errors import DataError
from tarflow.data.feed import Feed
from tarflow.data.load import ImageSet, load, load_all, load_dataset
from tarflow.data.numbers import ImageNumbers
from tarflow.data.store.write import prepare


def pictures(folder: Path, count: int = 12) -> None:
    """Grey images in two folders of classes, of level k each."""
    for k in range(count):
        (folder / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), k, np.uint8)).save(folder / "ab"[k % 2] / f"{k}.png")


def check(images: ImageSet, factor: float = 10.0) -> None:
    """Each image's number is its level, times a factor."""
    assert images.numbers is not None and images.number_names == ("ten",)
    assert torch.equal(images.numbers[:, 0], factor * images.images[:, 0, 0, 0].float())


def test_by_name_from_a_folder_a_store_and_in_part(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    table = tmp_path / "ten.csv"
    table.write_text("ten,what,file\n" + "".join(f"{10 * k},word,{'ab'[k % 2]}/{k}.png\n" for k in range(12)))
    found = load(str(tmp_path / "images"), conditions_from=str(table))
    prepare(str(tmp_path / "images"), tmp_path / "store")
    stored = load(str(tmp_path / "store"), conditions_from=str(table), conditions="ten")
    for images in (found.train, found.held_out, stored.train, stored.held_out):
        check(images)
        check(images.subset([0]))
    plain = load(str(tmp_path / "images")).train
    assert stored.train.digest() == found.train.digest() != plain.digest()
    table.write_text(table.read_text().replace("110,", "111,").replace("100,", "101,"))
    other = load(str(tmp_path / "images"), conditions_from=str(table))
    digests = [(each.train.digest(), each.held_out.digest()) for each in (found, other)]
    assert digests[0] != digests[1]


def test_a_batch_has_labels_numbers_or_both(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    (tmp_path / "ten.csv").write_text("ten,file\n" + "".join(f"{10 * k},{'ab'[k % 2]}/{k}\n" for k in range(12)))
    images = load_all(str(tmp_path / "images"), conditions_from=str(tmp_path / "ten.csv"))[0]
    order = {"batch_size": 6, "seed": 0}
    pixels, both = Feed(images, condition="classes:2+vector:1", **order).batch(1)  # type: ignore[arg-type]
    assert torch.equal(both[1][:, 0], 10 * pixels[:, 0, 0, 0].float()) and torch.equal(both[0], pixels[:, 0, 0, 0] % 2)
    for condition, part in (("classes:2", both[0]), ("vector:1", both[1])):
        assert torch.equal(Feed(images, condition=condition, **order).batch(1)[1], part)  # type: ignore[arg-type]
    assert Feed(images, condition="none", **order).batch(1)[1] is None  # type: ignore[arg-type]


def test_by_row_where_images_are_rows_of_one_file(tmp_path: Path) -> None:
    levels = np.arange(12, dtype=np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (12, 4, 4, 1))
    np.savez(tmp_path / "sky.npz", images=images, ten=10.0 * levels, one=np.ones(12))
    source = str(tmp_path / "sky.npz")
    found = load(source, conditions_from=source, conditions="ten")
    prepare(source, tmp_path / "store")
    stored = load(str(tmp_path / "store"), conditions_from=source, conditions="ten")
    for part in (found.train, found.held_out, stored.train, stored.held_out):
        check(part)
    np.savez(tmp_path / "short.npz", ten=10.0 * levels[:5])
    with pytest.raises(DataError, match="no row of 7 of 12 images, the first is sky.npz:5"):
        load_all(source, conditions_from=str(tmp_path / "short.npz"))
    dataset = [np.full((4, 4), k, np.uint8) for k in range(12)]
    check(load_dataset(dataset, conditions_from=source, conditions="ten").train)
    with pytest.raises(DataError, match="expected a column `file`"):  # two sets, and one table of rows
        load_dataset(dataset, dataset, conditions_from=source, conditions="ten")


def test_a_table_that_is_only_looked_at_may_lack_images(tmp_path: Path) -> None:
    pictures(tmp_path / "images")
    for text in ("file,ten\na/0.png,1\n", None):
        table = tmp_path / "some.csv"
        table.unlink(missing_ok=True) if text is None else table.write_text(text)
        options = {"conditions_from": str(table), "conditions_needed": False}
        assert load_all(str(tmp_path / "images"), **options)[0].numbers is None  # type: ignore[arg-type]


def test_names_that_are_numbers_of_a_catalogue(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,z\n1237648720,0.5\n1237648721,0.7\n")
    assert ImageNumbers(str(tmp_path / "t.csv")).of(["1237648721.jpg"]).tolist() == [[pytest.approx(0.7)]]
