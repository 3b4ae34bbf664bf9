"""Real data, where they are: CIFAR-10 and a part of Tiny ImageNet. A few hundred rows of each, so that it is quick."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tarflow.data.load import load_all


def first_rows(path: Path, rows: int, to: Path) -> str:
    with pq.ParquetFile(path) as file:
        pq.write_table(pa.Table.from_batches([next(file.iter_batches(rows))]), to)
    return str(to)


def test_cifar10_comes_in_its_official_order(shared_data: Path, tmp_path: Path) -> None:
    source = first_rows(shared_data / "cifar10/test-00000-of-00001.parquet", 200, tmp_path / "test.parquet")
    images, skipped = load_all(source)
    assert images.images.shape == (200, 3, 32, 32)
    assert images.labels is not None
    assert [images.class_names[i] for i in images.labels[:5]] == ["cat", "ship", "ship", "airplane", "frog"]
    assert images.images[0, :, 0, 0].tolist() == [158, 112, 49]  # the first pixel of the official test_batch
    assert images.names[199] == "test.parquet:199"
    assert skipped == ()


def test_cifar10_has_about_its_published_statistics(shared_data: Path, tmp_path: Path) -> None:
    source = first_rows(shared_data / "cifar10/train-00000-of-00002.parquet", 1000, tmp_path / "train.parquet")
    values = load_all(source)[0].images.double()
    mean = torch.tensor([125.3069, 122.9504, 113.8654], dtype=torch.float64)
    std = torch.tensor([62.9932, 62.0887, 66.7049], dtype=torch.float64)
    # The means of images spread by about 32, so the mean of 1,000 of them by about 1.
    torch.testing.assert_close(values.mean((0, 2, 3)), mean, rtol=0, atol=4)
    torch.testing.assert_close(values.std((0, 2, 3)), std, rtol=0, atol=4)


def test_grey_photographs_among_coloured_ones_become_rgb(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "tiny-imagenet-64/validation-00000-of-00001.parquet"
    source = first_rows(path, 500, tmp_path / "validation.parquet")
    images, _ = load_all(source)
    assert images.images.shape == (500, 3, 64, 64)
    assert len(images.class_names) == 40
    grey = (images.images == images.images[:, :1]).all(dim=(1, 2, 3))
    assert 1 <= int(grey.sum()) <= 50
    assert load_all(source, image_size=32, channels=1)[0].images.shape == (500, 1, 32, 32)
