"""A set that is held out is never trained on: the words for splits, in every format, and what only looks like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from small_runs import write_images
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.load import load, load_all, open_scan
from tarflow.data.names import named_split, split_of

PAIRS = [
    ("training", "testing"),
    ("train", "dev"),
    ("TRAIN", "Eval"),
    ("train", "held-out"),
    ("train", "holdout"),
    ("trainset", "testset"),
    ("mnist_train", "mnist_test"),
    ("train2017", "val2017"),
    ("train-images", "validation-images"),
    ("TrainData", "TestData"),
    ("1_trn", "2_tst"),
]


@pytest.mark.parametrize(("train", "held_out"), PAIRS)
def test_folders_with_classes_inside(train: str, held_out: str, tmp_path: Path) -> None:
    for split in (train, held_out):
        for name in ("cat", "dog"):
            write_images(tmp_path / split / name, 3)
    found = load(str(tmp_path))
    assert found.own_split and found.train.class_names == ("cat", "dog")
    assert {name.split("/")[0] for name in found.train.names} == {train}
    assert {name.split("/")[0] for name in found.held_out.names} == {held_out}


@pytest.mark.parametrize(("train", "held_out"), PAIRS)
@pytest.mark.parametrize("layout", ["{}.parquet", "{}-00000-of-00001.parquet", "default/{}/0000.parquet"])
def test_parquet_files_and_their_folders(layout: str, train: str, held_out: str, tmp_path: Path) -> None:
    for count, split in ((5, train), (3, held_out)):
        path = tmp_path / layout.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_images(tmp_path.parent / f"{tmp_path.name}-images", 5)
        files = sorted((tmp_path.parent / f"{tmp_path.name}-images").iterdir())[:count]
        pq.write_table(pa.table({"image": [file.read_bytes() for file in files]}), path)
    found = load(str(tmp_path))
    assert found.own_split and (len(found.train), len(found.held_out)) == (5, 3)
    assert len(set(load_all(str(tmp_path))[0].names)) == 8, "each record has a name of its own"


@pytest.mark.parametrize(
    ("train", "held_out"), [("train", "t10k"), ("train", "test"), ("emnist-train", "emnist-test"), ("train", "dev")]
)
def test_idx_files(train: str, held_out: str, tmp_path: Path) -> None:
    for name, count in ((train, 5), (held_out, 3)):
        header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (count, 2, 2))
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(header + bytes(count * 4))
        (tmp_path / f"._{name}-images-idx3-ubyte").write_bytes(b"\0\5\x16\7junk")
    found = load(str(tmp_path))
    assert found.own_split and (len(found.train), len(found.held_out)) == (5, 3)


@pytest.mark.parametrize("names", [("test-tubes", "test-strips"), ("cat", "dog", "test-tubes", "training shoes")])
def test_classes_that_only_sound_like_splits_stay_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        write_images(tmp_path / name, 3)
    assert load(str(tmp_path)).train.class_names == tuple(sorted(names))


def test_what_could_be_either_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path / "train_images" / "cat", 3)
    write_images(tmp_path / "test" / "cat", 3)
    with pytest.raises(
        DataError, match=r"test/ and train_images/ may be splits or classes: expected names that differ"
    ):
        load(str(tmp_path))


def test_two_for_one_split_are_an_error(tmp_path: Path) -> None:
    for name in ("trainA", "trainB", "testA", "testB"):
        write_images(tmp_path / name, 3)
    with pytest.raises(DataError, match="testA/ and testB/ are both the test split"):
        load(str(tmp_path))


def test_a_split_beside_one_other_folder_is_a_class_and_that_is_said(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 3)
    write_images(tmp_path / "unlabelled", 3)
    with pytest.warns(DataWarning, match="train/ is taken for a class, not for a split"):
        assert load(str(tmp_path)).train.class_names == ("train", "unlabelled")


@pytest.mark.parametrize("above", ["data", "bottle"])
def test_splits_inside_of_a_class_are_an_error_that_says_where_they_belong(above: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / above / split / "good", 3)
    if above == "bottle":
        write_images(tmp_path / "cable" / "train" / "good", 3)
    with pytest.raises(DataError, match=rf"{above}: holds the splits train/ and test/: give it by its own path, or"):
        load(str(tmp_path))
    assert load(str(tmp_path / above)).own_split
    assert open_scan(str(tmp_path), image_size=(4, 4), channels=1, levels=256).total >= 6, "scores know no splits"


def test_several_sets_and_partitions_are_no_one_set(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"]})
    for name in ("a/train/0.parquet", "b/train/0.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        pq.write_table(table, tmp_path / name)
    with pytest.raises(DataError, match="holds several sets, as in .*/a and in .*/b: give the path of one"):
        load(str(tmp_path))
    (tmp_path / "c" / "label=0").mkdir(parents=True)
    pq.write_table(table, tmp_path / "c" / "label=0" / "part-0.parquet")
    with pytest.raises(DataError, match=r"in a partition by the value of a column \(label=0\)"):
        load(str(tmp_path / "c"))
    (tmp_path / "d" / "train").mkdir(parents=True)
    pq.write_table(table, tmp_path / "d" / "train" / "test-0.parquet")
    with pytest.raises(DataError, match="its name and its folders speak of several splits"):
        load(str(tmp_path / "d"))


def test_names_that_speak_of_two_splits_or_none_speak_of_none() -> None:
    assert [named_split(name) for name in ("train-test-split", "", "trains", "contest", "0000", "devices")] == [
        None
    ] * 6
    assert split_of(np.str_("Validation")) == "validation"
