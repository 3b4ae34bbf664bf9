"""IDX files, written here byte by byte."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tarflow.data.errors import DataError
from tarflow.data.load import load, load_all
from tarflow.data.readers import idx
from tarflow.data.readers.idx import FASHION_MNIST, FASHION_MNIST_CLASSES, read_idx


def write_idx(path: Path, values: np.ndarray) -> None:
    data = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five training and three test images of 4x6, the test files gzipped."""
    images = np.arange(8 * 4 * 6).reshape(8, 4, 6).astype(np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images[:5])
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1, 2, 3, 0], np.uint8))
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", images[5:])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.array([2, 2, 1], np.uint8))
    return tmp_path


def test_a_folder_has_its_own_split(folder: Path) -> None:
    splits = load(str(folder))
    assert splits.own_split
    assert splits.train.images.shape == (5, 1, 4, 6)
    assert torch.equal(splits.held_out.images.flatten(), torch.arange(120, 192, dtype=torch.uint8))
    assert splits.held_out.labels is not None
    assert splits.held_out.labels.tolist() == [2, 2, 1]
    assert splits.train.class_names == splits.held_out.class_names == ("0", "1", "2", "3")
    assert splits.train.names[4] == "train-images-idx3-ubyte:4"
    assert splits.held_out.names[0] == "t10k-images-idx3-ubyte.gz:0"


def test_a_folder_with_one_split_or_without_labels(folder: Path) -> None:
    for path in folder.glob("*t10k*"):
        path.unlink()
    (folder / "train-labels-idx1-ubyte").unlink()
    splits = load(str(folder), held_out_fraction=0.4)
    assert not splits.own_split
    assert (len(splits.train), len(splits.held_out)) == (3, 2)
    assert splits.train.labels is None
    assert splits.train.class_names == ()


def test_labels_in_one_split_only_are_an_error(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="the train split has labels and the test split has none"):
        load(str(folder))


def test_a_single_file_finds_its_labels(folder: Path) -> None:
    images, _ = load_all(str(folder / "t10k-images-idx3-ubyte.gz"))
    assert images.labels is not None
    assert images.labels.tolist() == [2, 2, 1]


@pytest.mark.parametrize(("data", "message"), [
    (b"", "expected an IDX file"),
    (b"\x89PNG\r\n\x1a\n", "expected an IDX file of unsigned bytes .* got 89 50 4e 47"),
    (b"\0\0\x0d\x03" + bytes(12), "expected an IDX file of unsigned bytes"),  # floats
    (b"\0\0\x08\x03\0\0", "ends within its header of 16 bytes"),
    (b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 3) + bytes(17), "expected 34 bytes for 2x3x3 values, got 33"),
    (b"\0\0\x08\x03" + struct.pack(">3I", 2, 3, 3) + bytes(19), "expected 34 bytes for 2x3x3 values, got 35"),
    (b"\0\0\x08\x03" + struct.pack(">3I", *[2**32 - 1] * 3), "expected 79228162458924105385300197391 bytes"),
    (b"\0\0\x08\x03" + struct.pack(">3I", 0, 2, 2), "holds no images"),
    (b"\0\0\x08\x03" + struct.pack(">3I", 2, 0, 2), r"expected images \(N, H, W\), got shape \(2, 0, 2\)"),
    (b"\0\0\x08\x01" + struct.pack(">I", 2) + bytes(2), r"expected images \(N, H, W\), got shape \(2,\)"),
])  # fmt: skip
def test_false_files_are_errors_that_name_them(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{tmp_path}.*: .*{message}"):
        load(str(tmp_path))


def test_damaged_gzip_files_are_errors(folder: Path) -> None:
    path = folder / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damaged in (b"no gzip at all", whole[:-9], whole[:20] + b"\xff\xff\xff" + whole[23:]):
        path.write_bytes(damaged)
        with pytest.raises(
            DataError, match=f"{path}: expected (a gzip file|402653176 bytes for 16777215x4x6 values, got fewer)"
        ):
            read_idx(path)


def test_as_many_labels_as_images(folder: Path) -> None:
    path = folder / "train-labels-idx1-ubyte"
    write_idx(path, np.zeros(4, np.uint8))
    with pytest.raises(DataError, match=f"{path}: expected 5 labels, one an image, got shape"):
        load(str(folder))


def test_missing_fashion_mnist_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(idx, "FASHION_MNIST", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"package dataset-fashion-mnist, or give the path of a folder"):
        load("fashion-mnist")


def test_fashion_mnist_is_a_folder_with_names_for_its_classes(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(idx, "FASHION_MNIST", folder)
    splits = load("fashion-mnist")
    assert splits.train.class_names == FASHION_MNIST_CLASSES
    assert len(FASHION_MNIST_CLASSES) == 10
    write_idx(folder / "train-labels-idx1-ubyte", np.array([0, 1, 2, 3, 10], np.uint8))
    with pytest.raises(DataError, match="label 10: expected 0 to 9"):
        load("fashion-mnist")


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist() -> None:
    images = read_idx(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")
    labels = read_idx(FASHION_MNIST / "t10k-labels-idx1-ubyte.gz")
    assert images.shape == (10000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert labels[:3].tolist() == [9, 2, 1]  # an ankle boot, a pullover, a pair of trousers
