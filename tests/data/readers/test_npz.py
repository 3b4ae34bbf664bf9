"""NumPy archives in their three layouts."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tarflow.data.errors import DataError
from tarflow.data.load import load_all
from tarflow.data.sources import open_source

RGB = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), np.uint8)  # (N, C, H, W)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.npz"


@pytest.mark.parametrize(("stored", "expected"), [
    (RGB, RGB),
    (RGB.transpose(0, 2, 3, 1), RGB),
    (RGB[:, :1], RGB[:, :1]),
    (RGB[:, :1].transpose(0, 2, 3, 1), RGB[:, :1]),
    (RGB[:, 0], RGB[:, :1]),
    (RGB[:, 0, :, :3], RGB[:, :1, :, :3]),  # three dimensions are grey, also 3 wide
])  # fmt: skip
def test_every_layout_becomes_channels_first(stored: Any, expected: Any, path: Path) -> None:
    np.savez_compressed(path, images=stored, other="not looked at")
    images, _ = load_all(str(path))
    assert np.array_equal(images.images.numpy(), expected)
    assert images.labels is None
    assert images.names == tuple(f"some.npz:{i}" for i in range(5))
    assert images.levels == 256


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_labels_are_their_own_names(dtype: Any, path: Path) -> None:
    np.savez(path, images=RGB, labels=np.array([3, 0, 1, 1, 0], dtype))
    images, _ = load_all(str(path))
    assert images.labels is not None
    assert images.labels.tolist() == [3, 0, 1, 1, 0]
    assert images.class_names == ("0", "1", "2", "3")


@pytest.mark.parametrize(("arrays", "message"), [
    ({"arr_0": RGB}, "expected a key 'images', got arr_0"),
    ({"images": RGB.astype(np.float32)}, "key 'images': expected uint8 .* got float32 of shape"),
    ({"images": RGB[0, 0]}, r"got uint8 of shape \(6, 7\)"),
    ({"images": RGB[:, :2]}, r"with C 1 or 3, got uint8 of shape \(5, 2, 6, 7\)"),
    ({"images": RGB[..., :3]}, r"got uint8 of shape \(5, 3, 6, 3\), which could be either"),
    ({"images": RGB[..., :0]}, r"got uint8 of shape \(5, 3, 6, 0\)"),
    ({"images": RGB[:0]}, "holds no images"),
    ({"images": RGB, "labels": np.zeros(4, int)}, "key 'labels': expected 5 whole numbers, got int64"),
    ({"images": RGB, "labels": np.zeros(5)}, "key 'labels': expected 5 whole numbers, got float64"),
    ({"images": RGB, "labels": np.array([0, 1, -1, 0, 0])}, "key 'labels': expected whole numbers from 0, got -1"),
    ({"images": np.array([None])}, "not a readable .npz archive"),  # would need pickle
])  # fmt: skip
def test_other_arrays_are_errors(arrays: dict[str, Any], message: str, path: Path) -> None:
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=f"{path}: .*{message}"):
        load_all(str(path))


def test_damaged_archives_are_errors(path: Path) -> None:
    np.savez_compressed(path, images=RGB)
    whole = path.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", b"text", whole[:-30], whole[:middle] + bytes(9) + whole[middle + 9 :]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{path}: (expected an|not a readable) .npz archive"):
            load_all(str(path))


def test_an_array_that_ends_before_its_header_says_is_an_error(path: Path) -> None:
    member = io.BytesIO()
    np.save(member, RGB)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", member.getvalue()[:-5])  # a sound archive of an unsound array
    with pytest.raises(DataError, match=f"{path}: not a readable .npz archive: key 'images' ends too early"):
        load_all(str(path))


@pytest.mark.parametrize("order", ["C", "F"])
def test_every_row_is_its_own_in_either_order(order: str, path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (7, 2, 4, 3), dtype=np.uint8)
    np.savez(path, images=np.asarray(stored, order=order), labels=np.arange(7))  # type: ignore[call-overload]
    images, _ = load_all(str(path))
    assert np.array_equal(images.images.numpy(), stored.transpose(0, 3, 1, 2))
    part = open_source(str(path)).parts[0]
    for row, found in zip((2, 5), part.read([2, 5]), strict=True):
        assert np.array_equal(found, stored.transpose(0, 3, 1, 2)[row])
