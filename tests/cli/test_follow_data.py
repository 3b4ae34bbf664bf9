"""Channels and sizes are those of the data unless they were typed, and a run goes on with what they came to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from small_runs import OPTIONS, resume, write_images
from tarflow import checkpoint
from tarflow.cli import main
from tarflow.config import TarFlowConfig

SMALL = [word for k, word in enumerate(OPTIONS) if not {word, OPTIONS[k - 1]} & {"--image-size", "--channels"}]
RECIPE = "[model]\nimage_size = 8\nchannels = 3\npatch_size = 2\nwidth = 64\nlayers = [1]\n[training]\nsteps = 4\n"


def train(data: Path | str, out: Path, *options: str, recipe: bool = True) -> int:
    """With a recipe of 3 channels and 8x8 pixels; or without one."""
    file = out.parent / "small.toml"
    file.write_text(RECIPE)
    named = ["--recipe", str(file)] if recipe else []
    return main(["train", "--data", str(data), "--out", str(out), *named, *SMALL, *options])


def model(out: Path) -> TarFlowConfig:
    return checkpoint.read_config(out).model


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("recipe", [True, False])
def test_the_channels_and_a_smaller_size_are_those_of_the_data_and_the_run_goes_on(
    mode: str, recipe: bool, tmp_path: Path
) -> None:
    photos, out = write_images(tmp_path / "photos", 40, size=(4, 4), mode=mode), tmp_path / "run"
    assert train(photos, out, recipe=recipe) == 0
    assert (model(out).image_size, model(out).channels) == (4, 1 if mode == "L" else 3)
    shutil.rmtree(out / "checkpoints" / "step-4")
    assert resume(out) == 0 and (out / "checkpoints" / "step-4").is_dir()


def test_what_is_typed_holds_also_where_it_is_what_the_recipe_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_images(tmp_path / "photos", 12)
    assert train(photos, tmp_path / "run", "--channels", "3", "--image-size", "8") == 0
    assert (model(tmp_path / "run").image_size, model(tmp_path / "run").channels) == (8, 3)
    assert "images of 4x4 are enlarged to 8x8; --image-size takes another" in capsys.readouterr().err


def test_prepare_and_train_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_images(tmp_path / "photos", 12, size=(10, 12))
    assert main(["prepare", str(photos), "--image-size", "6", "--out", str(tmp_path / "prepared")]) == 0
    assert train(tmp_path / "prepared", tmp_path / "run") == 0
    assert (model(tmp_path / "run").image_size, model(tmp_path / "run").channels) == (6, 1)
    assert main(["prepare", str(photos), "--out", str(tmp_path / "whole")]) == 0
    assert train(tmp_path / "whole", tmp_path / "other") == 0
    assert model(tmp_path / "other").image_size == (10, 12)


def test_sizes_that_do_not_fit_get_the_recipes_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = write_images(tmp_path / "odd", 12, size=(5, 5))
    assert train(odd, tmp_path / "a") == 0 and model(tmp_path / "a").image_size == 8
    assert "images of 5x5 are enlarged to 8x8" in capsys.readouterr().err
    large = write_images(tmp_path / "large", 12, size=(9, 12))
    assert train(large, tmp_path / "b") == 0 and model(tmp_path / "b").image_size == 8
    Image.new("L", (6, 4)).save(odd / "other.png")
    assert train(odd, tmp_path / "c") == 0 and model(tmp_path / "c").image_size == 8
    assert "enlarged" not in capsys.readouterr().err


def test_a_plan_follows_the_data_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_images(tmp_path / "photos", 12, size=(8, 8))
    assert main(["plan", "default", "--data", str(photos), "--device", "h100"]) == 0
    assert "8x8" in capsys.readouterr().out
