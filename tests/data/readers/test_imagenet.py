"""Both downsamplings of ImageNet, in small files of their layouts: read, named apart, and carried into results."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tarflow.cli import main
from tarflow.data.errors import DataError
from tarflow.data.load import load
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare

GENERATOR = np.random.default_rng(0)
OORD, CHRABASZCZ = "imagenet8-oord2016", "imagenet8-chrabaszcz2017"


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def oord_folder(root: Path) -> None:
    for split, count in (("train_8x8", 12), ("valid_8x8", 5)):
        (root / split).mkdir(parents=True)
        for k in range(count):
            (root / split / f"{k + 1:07}.png").write_bytes(png(k))


def oord_parquet(root: Path) -> None:
    root.mkdir(parents=True)
    for name, count in (("train_8x8-00000-of-00001", 12), ("valid_8x8-00000-of-00001", 5)):
        pq.write_table(pa.table({"image": [png(k) for k in range(count)]}), root / f"{name}.parquet")


def batch(count: int, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "data": generator.integers(0, 256, (count, 3 * 8 * 8), np.uint8),
        "labels": generator.integers(1, 1001, count),
        "mean": generator.random(3 * 8 * 8),
    }


def chrabaszcz(root: Path, **changes: Any) -> None:
    root.mkdir(parents=True)
    for k in range(1, 12):  # ten and eleven come after nine
        np.savez(root / f"train_data_batch_{k}.npz", **(batch(3, k) | (changes if k == 2 else {})))
    np.savez(root / "val_data.npz", **{k: v for k, v in batch(4, 99).items() if k != "mean"})


@pytest.mark.parametrize("make", [oord_folder, oord_parquet])
def test_the_one_of_2016(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "data")
    manifest, _ = prepare(str(tmp_path / "data"), tmp_path / "out", LoadOptions())
    assert (manifest.variant, manifest.train, manifest.held_out, manifest.own_split) == (OORD, 12, 5, True)
    splits = load(str(tmp_path / "out"))
    assert splits.variant == OORD and splits.train.labels is None
    first = np.asarray(Image.open(io.BytesIO(png(0)))).transpose(2, 0, 1)
    assert np.array_equal(splits.train.images[0].numpy(), first)


def test_the_one_of_2017(tmp_path: Path) -> None:
    chrabaszcz(tmp_path / "data")
    manifest, _ = prepare(str(tmp_path / "data"), tmp_path / "out", LoadOptions())
    assert (manifest.variant, manifest.train, manifest.held_out, manifest.shape) == (CHRABASZCZ, 33, 4, (3, 8, 8))
    splits = load(str(tmp_path / "out"))
    assert [name.split(":")[0] for name in splits.train.names[::3]] == [
        f"train_data_batch_{k}.npz" for k in range(1, 12)
    ]
    expected = batch(3, 10)
    at = list(splits.train.names).index("train_data_batch_10.npz:0")
    assert np.array_equal(splits.train.images[at + 1].numpy(), expected["data"][1].reshape(3, 8, 8))
    assert splits.train.labels is not None
    assert splits.train.labels[at : at + 3].tolist() == (expected["labels"] - 1).tolist()
    assert splits.train.class_names == tuple(str(k) for k in range(1000))
    assert torch.equal(load(str(tmp_path / "data")).train.images, splits.train.images)
    alone = load(str(tmp_path / "data" / "val_data.npz"))
    assert (len(alone.train) + len(alone.held_out), alone.variant) == (4, CHRABASZCZ)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.array([0, 1, 2])}, "batch_2.npz: key 'labels': expected 1 to 1000, .* got 0 to 2"),
        ({"labels": np.array([1, 2])}, "batch_2.npz: key 'labels': expected 3 whole numbers"),
        ({"data": np.zeros((3, 100), np.uint8)}, r"batch_2.npz: key 'data': expected uint8 of shape \(N, 3·S·S\)"),
        ({"data": np.zeros((3, 192))}, "batch_2.npz: key 'data': expected uint8 .* got float64"),
        ({"data": np.zeros((3, 48), np.uint8)}, "batch_2.npz: images of 4x4, and those of .* are 8x8"),
        ({"data": np.array([None])}, "batch_2.npz: not a readable .npz archive: key 'data' is a pickle"),
    ],
)
def test_other_contents_are_errors(changes: Any, message: str, tmp_path: Path) -> None:
    chrabaszcz(tmp_path / "data", **changes)
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "data"))


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    chrabaszcz(tmp_path / "data")
    (tmp_path / "data" / "train_data_batch_3").write_bytes(b"\x80\x03}q\x00.")
    for source in (tmp_path / "data", tmp_path / "data" / "train_data_batch_3"):
        with pytest.raises(DataError, match="train_data_batch_3: a pickle, which can run any code and is never loaded"):
            load(str(source))


def test_the_name_goes_into_the_run_and_into_its_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    oord_folder(tmp_path / "old")
    chrabaszcz(tmp_path / "new")
    old, new, run = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    small = "--image-size 8 --patch-size 4 --width 64 --layers 1 --steps 1 --batch-size 4 --sample-every 0"
    command = f"train --recipe imagenet64-likelihood --data {old} --out {run} --evaluate-images 4 {small}"
    assert main(command.split()) == 0
    assert json.loads((run / "config.json").read_text())["data"]["variant"] == OORD
    for source, variant in ((old, OORD), (new, CHRABASZCZ)):
        capsys.readouterr()
        assert main(["evaluate", str(run), "--data", str(source), "--draws", "1"]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert (printed["data_variant"], printed["trained_on_variant"]) == (variant, OORD)
