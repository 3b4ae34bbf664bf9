"""Images of more than 8 bits: the range of their values is said, may be chosen, and is kept with the run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from small_runs import evaluate, resume, train
from tarflow import checkpoint
from tarflow.cli import main
from tarflow.config import ConfigError, DataConfig, ValueRange
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.load import load, load_all, open_scan
from tarflow.data.options import LoadOptions
from tarflow.data.store.read import read_manifest


def write(folder: Path, count: int, low: float, high: float, kind: str = "png", seed: int = 0) -> Path:
    """Images of values from `low` to `high`; the first has both."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        values = np.random.default_rng(seed + k).uniform(low, high, (4, 4))
        values[0, 0], values[0, 1] = (low, high) if k == 0 else values[0, :2]
        array = values.astype(np.float32) if kind == "float.tif" else values.round().astype(np.uint16)
        Image.fromarray(array).save(folder / f"{k:03}.{kind.rpartition('.')[2]}")
    return folder


SAID = r"values of 16 bits from 0 to 4095 become levels 0 to 16 of 0 to 255; --value-range 0 4095, auto or percentile"


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_12_bits_in_files_of_16_are_said(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", 20, 0, 4095, kind)
    with pytest.warns(DataWarning, match=SAID):
        assert int(load_all(str(folder))[0].images.max()) == 16
    with pytest.warns(DataWarning, match=SAID):
        list(open_scan(str(folder), image_size=(4, 4), channels=1, levels=256))


def test_16_bits_and_8_bits_are_not(tmp_path: Path) -> None:
    load_all(str(write(tmp_path / "wide", 20, 100, 60000)))
    Image.new("L", (4, 4)).save(tmp_path / "dark.png")
    load_all(str(tmp_path / "dark.png"))


def levels(folder: Path, value_range: ValueRange) -> tuple[int, int]:
    images = load_all(str(folder), value_range=value_range)[0].images
    return int(images.min()), int(images.max())


def test_a_range_spreads_what_it_holds_and_clips_the_rest(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", 20, 0, 4095)
    assert levels(folder, (0, 4095)) == (0, 255)
    assert levels(folder, (0, 8190)) == (0, 128)
    assert levels(folder, "auto") == (0, 255)
    array = np.asarray(Image.open(folder / "003.png")).astype(float)
    with pytest.warns(DataWarning, match="values from 0 to 4095, of which those outside of 1000 to 3000"):
        images = load_all(str(folder), value_range=(1000.0, 3000.0))[0].images
    expected = np.rint((array - 1000) * 255 / 2000).clip(0, 255)
    assert np.array_equal(images[3, 0].numpy(), expected)


def test_percentiles_do_not_follow_single_pixels(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", 200, 500, 1500)
    hot = np.asarray(Image.open(folder / "007.png")).copy()
    hot[2, 2] = 65535
    Image.fromarray(hot).save(folder / "007.png")
    assert levels(folder, "auto") == (0, 255)
    median = {}
    with pytest.warns(DataWarning, match="are clipped"):
        for kind in ("auto", "percentile"):
            images = load_all(str(folder), value_range=kind)[0].images  # type: ignore[arg-type]
            median[kind] = float(images.float().median())
    assert median["auto"] < 10 < 100 < median["percentile"] < 160


def test_floats_need_a_range(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", 20, -1.0, 1.0, "float.tif")
    with pytest.raises(DataError, match="floating-point pixels, which have no fixed range.*--value-range gives one"):
        load_all(str(folder))
    assert levels(folder, (-1, 1)) == levels(folder, "auto") == (0, 255)


def test_ranges_that_are_none_are_errors(tmp_path: Path) -> None:
    flat = write(tmp_path / "x", 4, 7, 7)
    with pytest.raises(DataError, match="--value-range auto: the values are from 7 to 7: no range"):
        load_all(str(flat), value_range="auto")
    with pytest.raises(ConfigError, match=r"value_range: expected a lower number, then a higher, got \(5.0, 5.0\)"):
        DataConfig(value_range=(5, 5))
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.warns(DataWarning, match="--value-range auto: no image has more than 8 bits"):
        load_all(str(tmp_path / "grey.png"), value_range="auto")


@pytest.mark.parametrize("options", [["auto"], ["0", "4095"]])
def test_the_range_is_kept_with_the_run_and_used_by_every_command(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = write(tmp_path / "x", 30, 0, 4095), tmp_path / "run"
    assert train(folder, run, "--noise", "uniform", "--value-range", *options) == 0
    data = checkpoint.read_config(run).data
    assert data is not None and data.value_range == (0.0, 4095.0)
    assert "become levels" not in capsys.readouterr().err
    assert resume(run) == 0
    assert evaluate(capsys, run)["split"] == "held-out"
    other = write(tmp_path / "other", 6, 0, 1000, seed=500)  # by its own values it would be spread otherwise
    assert main(["score", str(run), str(other), "--draws", "1", "--out", str(tmp_path / "a.csv")]) == 0
    eight = tmp_path / "eight"
    eight.mkdir()
    for path in other.iterdir():
        values = np.rint(np.asarray(Image.open(path)).astype(float) * 255 / 4095).astype(np.uint8)
        Image.fromarray(values).save(eight / path.name)
    assert main(["score", str(run), str(eight), "--draws", "1", "--out", str(tmp_path / "b.csv")]) == 0
    assert rows(tmp_path / "a.csv") == rows(tmp_path / "b.csv")
    capsys.readouterr()
    assert main(["train", "--out", str(run), "--resume", "--value-range", "0", "9"]) == 2
    assert "data.value_range: the run in" in capsys.readouterr().err


def rows(path: Path) -> list[Any]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_a_prepared_set_hands_its_range_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write(tmp_path / "x", 30, 0, 4095), tmp_path / "prepared"
    command = ["prepare", str(folder), "--out", str(out)]
    assert main([*command, "--value-range", "auto"]) == 0
    assert read_manifest(out).value_range == (0.0, 4095.0)
    assert main([*command, "--value-range", "auto"]) == 0 and "up to date" in capsys.readouterr().out
    assert main(command) == 2 and "prepared with value range 'auto', asked for" in capsys.readouterr().err
    assert train(out, tmp_path / "run") == 0
    data = checkpoint.read_config(tmp_path / "run").data
    assert data is not None and data.value_range == (0.0, 4095.0)
    assert train(out, tmp_path / "other", "--value-range", "0", "9") == 2
    assert "was prepared with (0.0, 4095.0), got (0.0, 9.0)" in capsys.readouterr().err
    direct = load(str(folder), value_range=(0, 4095))
    assert load(str(out)).train.digest() == direct.train.digest()
    assert LoadOptions().value_range == "full"
