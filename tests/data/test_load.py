"""The front door: sizes, channels, levels, classes, splits, and what is said when they do not fit."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tarflow.data import assemble
from tarflow.data.errors import DataError
from tarflow.data.load import ImageSet, load, load_all
from tarflow.measure import requantize


def save(path: Path, shape: tuple[int, ...] = (4, 4), value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)
    return path


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Twenty grey images, the number of each its value."""
    np.savez(tmp_path / "numbered.npz", images=np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((2, 2), np.uint8))
    return tmp_path / "numbered.npz"


def values(images: ImageSet) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("source", ["digit", "no/such/place", "", "fashion_mnist"])
def test_a_source_that_is_nothing_names_what_is_known(source: str) -> None:
    with pytest.raises(FileNotFoundError, match="no such path, nor one of the known names digits, fashion-mnist") as e:
        load(source)
    near = {"digit": "digits", "fashion_mnist": "fashion-mnist"}.get(source)
    assert near is None or str(e.value).endswith(f"; perhaps {near}?")


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes.txt: expected a folder, .parquet, .npz, IDX"):
        load_all(str(tmp_path / "notes.txt"))


def test_the_home_folder_may_be_abbreviated(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(numbered.parent))
    assert len(load_all("~/numbered.npz")[0]) == 20


def test_images_of_several_sizes_need_an_image_size(tmp_path: Path) -> None:
    save(tmp_path / "a.png", (4, 6))
    save(tmp_path / "b.png", (8, 6))
    with pytest.raises(DataError, match=r"a.png is 4x6 and b.png is 8x6 \(height x width\): give an image size"):
        load_all(str(tmp_path))
    assert load_all(str(tmp_path), image_size=4)[0].images.shape == (2, 1, 4, 4)
    assert load_all(str(tmp_path), image_size=(2, 6))[0].images.shape == (2, 1, 2, 6)


def test_sizes_must_agree_across_splits(tmp_path: Path) -> None:
    save(tmp_path / "train/a.png", (4, 4))
    save(tmp_path / "val/b.png", (5, 4))
    with pytest.raises(DataError, match=r"train/a.png is 4x4 and val/b.png is 5x4"):
        load(str(tmp_path))


def test_channels_are_grey_only_where_all_images_are(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"train/{i}.png", (4, 4), 10 + i)
    save(tmp_path / "val/0.png", (4, 4), 90)
    assert load(str(tmp_path)).train.images.shape == (3, 1, 4, 4)
    save(tmp_path / "val/1.png", (4, 4, 3), 91)
    splits = load(str(tmp_path))
    assert splits.train.images.shape == (3, 3, 4, 4)
    assert splits.held_out.images.shape == (2, 3, 4, 4)
    assert splits.train.images[:, 2, 3, 3].tolist() == [10, 11, 12]
    assert (
        splits.held_out.images.amax((1, 2, 3)).tolist() == splits.held_out.images.amin((1, 2, 3)).tolist() == [90, 91]
    )
    assert load(str(tmp_path), channels=1).train.images.shape == (3, 1, 4, 4)
    assert load(str(tmp_path / "train"), channels=3).train.images.shape[1:] == (3, 4, 4)


def test_colour_after_grey_keeps_what_was_read(tmp_path: Path) -> None:
    shapes = [(2, 2), (2, 2), (2, 2, 3), (2, 2)]
    for i, shape in enumerate(shapes):
        save(tmp_path / f"{i}.png", shape, 50 + i)
    images, _ = load_all(str(tmp_path))
    assert images.images.shape == (4, 3, 2, 2)
    for i in range(4):
        assert images.images[i].unique().tolist() == [50 + i]


def test_levels_are_requantised(numbered: Path) -> None:
    images, _ = load_all(str(numbered), levels=17)
    assert images.levels == 17
    assert values(images) == requantize(torch.arange(20, dtype=torch.uint8), 256, 17).tolist()
    digits, _ = load_all("digits", levels=256)
    assert digits.levels == 256
    assert digits.images.unique().tolist() == [round(k * 255 / 16) for k in range(17)]


@pytest.mark.parametrize(("options", "message"), [
    ({"channels": 4}, r"channels: expected 1 \(grey\) or 3 \(RGB\), got 4"),
    ({"levels": 1}, "levels: expected 2 to 256, got 1"),
    ({"levels": 1000}, "levels: expected 2 to 256, got 1000"),
    ({"image_size": 0}, "image_size: expected a positive number"),
    ({"image_size": (4, -1)}, "image_size: expected a positive number"),
    ({"image_size": (4, 4, 3)}, "image_size: expected a positive number"),
    ({"held_out_fraction": 0.0}, "held_out_fraction: expected a number between 0 and 1, got 0.0"),
    ({"held_out_fraction": 1.0}, "held_out_fraction: expected"),
])  # fmt: skip
def test_impossible_options_are_errors_before_anything_is_read(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("no/such/place", **options)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=30)
@given(size=st.integers(2, 20), fraction=st.floats(0.001, 0.999), seed=st.integers(0, 5))
def test_a_fraction_is_held_out(
    size: int, fraction: float, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("held-out") / "x.npz"
    np.savez(path, images=np.arange(size, dtype=np.uint8)[:, None, None])
    splits = load(str(path), held_out_fraction=fraction, split_seed=seed)
    train, held_out = values(splits.train), values(splits.held_out)
    assert sorted(train + held_out) == list(range(size))
    assert train == sorted(train)  # as in the source
    assert len(held_out) == min(max(round(fraction * size), 1), size - 1)
    again = load(str(path), held_out_fraction=fraction, split_seed=seed)
    assert values(again.held_out) == held_out
    assert splits.held_out.names == tuple(f"x.npz:{i}" for i in held_out)


def test_seeds_hold_out_different_images(numbered: Path) -> None:
    drawn = {tuple(values(load(str(numbered), held_out_fraction=0.5, split_seed=seed).held_out)) for seed in range(5)}
    assert len(drawn) == 5


def test_labels_are_mapped_by_the_names_of_a_model(tmp_path: Path) -> None:
    for value, name in enumerate(["cat/1.png", "dog/1.png", "dog/2.png"]):
        save(tmp_path / name, value=value)
    images, _ = load_all(str(tmp_path), class_names=("dog", "eel", "cat"))
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 0]
    assert images.class_names == ("dog", "eel", "cat")
    with pytest.raises(DataError, match=r"unknown class 'dog': expected one of cat, eel$"):
        load_all(str(tmp_path), class_names=("cat", "eel"))
    with pytest.raises(DataError, match="class_names: expected each name once"):
        load_all(str(tmp_path), class_names=("dog", "cat", "cat"))
    many = tuple(str(i) for i in range(100))
    with pytest.raises(DataError, match=r"unknown class 'cat': expected one of 0, 1, .*, 19, \.\.\. \(100 in all\)"):
        load_all(str(tmp_path), class_names=many)


def test_class_names_do_not_label_what_has_no_labels(numbered: Path) -> None:
    images, _ = load_all(str(numbered), class_names=("cat", "dog"))
    assert images.labels is None
    assert images.class_names == ()


def test_progress_counts_every_record_to_the_last(numbered: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_all(str(numbered), progress=lambda done, total: calls.append((done, total)))
    assert [total for _, total in calls] == [20] * len(calls)
    assert [done for done, _ in calls] == [16, 20]


def test_a_bomb_in_a_folder_is_named_and_nothing_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", (2, 2))
    save(tmp_path / "b.png", (4, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(DataError, match=r"b.png: 4x4 pixels: expected at most Pillow's limit of 10"):
            load_all(str(tmp_path))
    assert not caught


def test_more_than_the_memory_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    save(tmp_path / "a.png", (30, 40, 3))
    monkeypatch.setattr(assemble.np, "empty", refuse)
    with pytest.raises(DataError, match=r"1 images of 30x40 need 0 GB of memory: give a smaller image size"):
        load_all(str(tmp_path))


def test_many_images_keep_their_order_through_the_threads(tmp_path: Path) -> None:
    size = 2 * assemble._CHUNK * assemble._WINDOW + 5
    numbers = np.arange(size)
    stored = np.stack([numbers // 256, numbers % 256], 1).astype(np.uint8).reshape(size, 1, 2)
    np.savez(tmp_path / "x.npz", images=stored)
    images, _ = load_all(str(tmp_path / "x.npz"))
    assert np.array_equal(images.images[:, 0].numpy(), stored)


def test_a_subset_is_a_copy_in_the_order_asked_for(numbered: Path) -> None:
    images, _ = load_all(str(numbered))
    subset = images.subset([3, 1])
    assert values(subset) == [3, 1]
    assert subset.names == ("numbered.npz:3", "numbered.npz:1")
    assert len(subset) == 2
    subset.images.fill_(9)
    assert values(images) == list(range(20))
    assert len(images.subset(torch.tensor([], dtype=torch.int64))) == 0


def test_a_choice_is_seeded_in_order_and_of_every_class() -> None:
    digits = load_all("digits")[0]
    some = digits.choice(100, seed=3)
    assert len(some) == 100 and some.names == digits.choice(100, seed=3).names
    assert some.names != digits.choice(100, seed=4).names
    positions = [digits.names.index(name) for name in some.names]
    assert positions == sorted(positions)
    assert len(digits.choice(10_000, seed=0)) == len(digits)


def test_all_of_a_set_is_its_splits_one_after_the_other_with_their_own_labels_and_names(tmp_path: Path) -> None:
    wanted = []
    for split, classes in (("train", "abbc"), ("val", "bc"), ("test", "a")):
        for number, name in enumerate(classes):
            wanted.append((f"{split}/{name}/{number}.png", "abc".index(name), 10 * len(wanted)))
            save(tmp_path / split / name / f"{number}.png", value=10 * (len(wanted) - 1))
    images, skipped = load_all(str(tmp_path))
    assert images.labels is not None and skipped == ()
    assert list(zip(images.names, images.labels.tolist(), values(images), strict=True)) == wanted
    assert images.class_names == ("a", "b", "c")
