"""Images of another shape, and windows of larger ones: one rule for training, stores, scores and pages."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tarflow
from small_runs import evaluate, resume, train, write_images
from tarflow import checkpoint
from tarflow.config import ConfigError, TrainingConfig
from tarflow.data import load as load_module
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.feed import Feed
from tarflow.data.images import fit
from tarflow.data.load import load, load_held_out, open_scan
from tarflow.data.options import LoadOptions
from tarflow.data.store.read import MANIFEST_FILE
from tarflow.data.store.write import prepare
from tarflow.model.condition import Classes
from tarflow.play.pictures import read_image
from tarflow.training.step import crops, training_batch
from training_cases import assert_bitwise_equal, run_weights

LAST = "step-4"


def ramp(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.arange(10, 10 + height * width, dtype=np.uint8).reshape(height, width))


def test_padding_keeps_all_pixels_in_the_middle() -> None:
    image = ramp(2, 4)
    pixels = np.asarray(image)
    for with_, value in (("white", 255), ("black", 0)):
        padded = np.asarray(fit(image, (5, 4), "pad", with_))  # type: ignore[arg-type]
        assert (padded[[0, 3, 4]] == value).all() and np.array_equal(padded[1:3], pixels)
    edge = np.asarray(fit(image, (5, 4), "pad"))
    assert np.array_equal(edge, pixels[[0, 0, 1, 1, 1]])
    colour = fit(image.convert("RGB"), (2, 7), "pad", "white")
    assert colour.size == (7, 2) and (np.asarray(colour)[:, 5:] == 255).all()
    assert np.array_equal(
        np.asarray(fit(image.convert("RGB"), (2, 7), "pad"))[..., 0], pixels[:, [0, 0, 1, 2, 3, 3, 3]]
    )


def test_a_padded_image_is_scaled_in_one_proportion_and_a_stretched_one_is_not() -> None:
    image = Image.new("L", (40, 20), 200)
    padded = np.asarray(fit(image, (10, 10), "pad", "black"))
    assert [int((row == 200).sum()) for row in padded] == [0] * 2 + [10] * 5 + [0] * 3
    assert (np.asarray(fit(image, (10, 10), "stretch")) == 200).all()
    half = Image.fromarray(np.repeat(np.array([[0] * 20 + [255] * 20], np.uint8), 20, axis=0))
    assert (np.asarray(fit(half, (10, 10), "stretch"))[:, [0, -1]] == [0, 255]).all()
    assert (np.asarray(fit(half, (10, 10), "crop"))[0, [0, -1]] == [0, 255]).all()
    assert fit(Image.new("L", (1000, 1)), (8, 8), "pad").size == (8, 8)
    assert fit(image, (20, 40), "pad") is image and fit(image, (20, 40), "stretch") is image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", 24, size=(7, 10))


def test_windows_are_the_middle_for_all_but_training(photos: Path) -> None:
    whole = load(str(photos))
    found = load(str(photos), image_size=(4, 5), crop_from=(7, 10))
    for part, own in ((found.train, whole.train), (found.held_out, whole.held_out)):
        assert part.wide is not None and torch.equal(part.wide, own.images)
        assert torch.equal(part.images, own.images[:, :, 1:5, 2:7])
    assert torch.equal(load_held_out(str(photos), LoadOptions((4, 5), crop_from=(7, 10))).images, found.held_out.images)
    scanned = {image.name: image.pixels for image in open_scan(str(photos), image_size=(4, 5), crop_from=(7, 10))}
    for name, pixels in zip(found.train.names, found.train.images, strict=True):
        assert torch.equal(scanned[name], pixels)  # type: ignore[arg-type]
    # Whatever is kept of images goes by their digest: what is seen of them is a part of it.
    others = [whole, found, *(load(str(photos), image_size=size, crop_from=(7, 10)) for size in (4, 6))]
    assert len({each.train.digest() for each in others}) == len(others)
    assert load(str(photos), image_size=4, crop_from=4).train.wide is None
    feed = Feed(found.train, batch_size=3, seed=0, condition="none")
    assert feed.batch(0)[0].shape == (3, 1, 7, 10)


def test_another_rule_makes_another_store(photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"image_size": 4},
        {"image_size": 4, "aspect": "pad"},
        {"image_size": 4, "aspect": "pad", "pad_with": "white"},
        {"image_size": 4, "aspect": "stretch"},
        {"image_size": 4, "crop_from": 6},
    ]
    memory = [load(str(photos), **options) for options in asked]
    assert len({found.train.digest() for found in memory}) == len(asked)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load_module, "MEMORY_SHARE", 0.0)
    for options, expected in zip(asked, memory, strict=True):
        with pytest.warns(DataWarning, match="decoded once"):
            found = load(str(photos), **options)
        assert found.train.mapped and torch.equal(found.train.images, expected.train.images)
        assert found.train.digest() == expected.train.digest() == load(str(photos), **options).train.digest()


def test_a_prepared_set_has_its_rule_and_gives_windows(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    prepare(str(photos), out, image_size=8, aspect="pad")
    with pytest.raises(FileExistsError, match=r"prepared with aspect 'pad', asked for aspect 'crop'"):
        prepare(str(photos), out, image_size=8)
    found = load(str(out), image_size=6, crop_from=8)
    expected = load(str(photos), image_size=6, crop_from=8, aspect="pad")
    assert torch.equal(found.train.images, expected.train.images) and found.train.digest() == expected.train.digest()
    with pytest.raises(DataError, match=r"image size 8x8, asked for 6x6.*or train on windows of 8x8, by --crop-from"):
        load(str(out), image_size=6)


def test_what_was_prepared_before_there_were_rules_is_up_to_date(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    prepare(str(photos), out, image_size=8)
    manifest = out / MANIFEST_FILE
    values = json.loads(manifest.read_text())
    values["asked"] = [entry for entry in values["asked"] if entry[0] not in ("aspect", "pad with")]
    values = {name: value for name, value in values.items() if name not in ("aspect", "pad_with")}
    manifest.write_text(json.dumps(values))
    assert prepare(str(photos), out, image_size=8)[1]
    with pytest.raises(FileExistsError, match="asked for aspect 'stretch'"):
        prepare(str(photos), out, image_size=8, aspect="stretch")


def seen(pixels: torch.Tensor, size: tuple[int, int], step: int = 0, **options: Any) -> torch.Tensor:
    count = len(pixels)
    config = TrainingConfig(batch_size=count, steps=1, noise_std=1e-6, seed=options.pop("seed", 0))
    how = {"config": config, "condition": Classes(10), "measure": config.measure(256), "flip": False}
    x, _ = training_batch(pixels, None, step, **how, size=size, **options)
    return x


def test_each_window_is_one_of_the_image_and_every_place_is_reached() -> None:
    image = torch.arange(30, dtype=torch.uint8).view(1, 1, 5, 6)
    pixels = image.expand(1200, -1, -1, -1)
    x = seen(pixels, (3, 5)).round(decimals=3)
    wanted = {
        tuple(seen(image[:, :, top : top + 3, left : left + 5], (3, 5)).round(decimals=3).flatten().tolist())
        for top in range(3)
        for left in range(2)
    }
    found, counts = x.flatten(1).unique(dim=0, return_counts=True)
    assert {tuple(row) for row in found.tolist()} == wanted
    assert int(counts.min()) > 140  # of 200 expected; 13 is a standard deviation
    assert not torch.equal(x, seen(pixels, (3, 5), step=1).round(decimals=3))
    assert not torch.equal(x, seen(pixels, (3, 5), seed=1).round(decimals=3))
    padded = seen(pixels, (3, 5), crop_padding=1).round(decimals=3).flatten(1).unique(dim=0)
    assert len(padded) == 5 * 4


def test_crops_of_images_of_the_models_size_are_what_they_were() -> None:
    """So a run that was begun before there were windows goes on as it would have."""
    from tarflow.seeding import seeded_generator

    pixels = torch.randint(0, 256, (16, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moved = torch.randint(5, (16, 2), generator=seeded_generator(0, "training", 3, device="cpu")) - 2
    config = TrainingConfig(batch_size=16, steps=1)
    assert torch.allclose(
        seen(pixels, (4, 4), step=3, crop_padding=2), config.measure(256).clean(crops(pixels, moved)), atol=1e-4
    )


def test_a_run_follows_its_rule_from_training_to_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, run = write_images(tmp_path / "photos", 24, size=(6, 10)), tmp_path / "run"
    rule = ("--aspect", "pad", "--pad-with", "white", "--crop-from", "6")
    assert train(photos, run, *rule) == 0
    assert "1x4x4 windows of 6x6" in capsys.readouterr().err
    data = checkpoint.read_config(run).data
    assert data is not None and (data.aspect, data.pad_with, data.crop_from) == ("pad", "white", 6)
    opened = tarflow.open_run(run)
    path = photos / "003.png"
    picture = Image.open(path)
    expected = fit(picture, (6, 6), "pad", "white").crop((1, 1, 5, 5))
    for pixels in (tarflow.from_pil(picture, opened)[0], read_image(opened, path.read_bytes())):
        assert np.array_equal(pixels[0].numpy(), np.asarray(expected))
    assert tarflow.cli.main(["score", str(run), str(photos), "--out", str(tmp_path / "scores.csv")]) == 0
    evaluate(capsys, run)

    whole = run_weights(run)
    shutil.rmtree(run / "checkpoints" / LAST)
    assert resume(run) == 0
    assert_bitwise_equal(whole, run_weights(run))

    # The same windows from a prepared set, whose rule the run takes.
    prepared, other = tmp_path / "prepared", tmp_path / "other"
    prepare(str(photos), prepared, image_size=6, aspect="pad", pad_with="white", channels=1)
    assert train(prepared, other, "--crop-from", "6") == 0
    assert_bitwise_equal(whole, run_weights(other))
    assert checkpoint.read_config(other).data.aspect == "pad"  # type: ignore[union-attr]
    assert train(prepared, tmp_path / "third", "--crop-from", "6", "--aspect", "stretch") == 2
    assert "data.aspect: " in (said := capsys.readouterr().err) and "was prepared with pad, got stretch" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--crop-from", "3"), "crop_from: expected at least the size of the model, 4x4, got 3x3"),
        (("--crop-from", "0"), "data.crop_from: expected positive numbers, got 0"),
        (("--aspect", "fit"), "--aspect: expected one of crop, pad, stretch, got 'fit'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    options: tuple[str, ...], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(photos, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_data_set_of_ones_own_is_cut_to_windows_too(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = {"patch_size": 2, "width": 16, "head_dim": 8, "layers": [1], "steps": 2, "batch_size": 4}
    run = tarflow.train(pixels, tmp_path / "run", image_size=4, crop_from=6, **small)
    assert run.config.model.image_size == 4 and run.config.data.crop_from == 6  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"data\.crop_from: expected --image-size besides"):
        tarflow.train(pixels, tmp_path / "other", crop_from=6, **small)


def test_bytes_of_a_transposed_file_are_padded_after_they_are_turned(tmp_path: Path) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    ramp(2, 4).save(file, "PNG", exif=exif)
    (tmp_path / "a.png").write_bytes(file.getvalue())
    (tmp_path / "b.png").write_bytes(file.getvalue())
    images = load(str(tmp_path), image_size=4, aspect="pad", pad_with="white").train.images
    assert (images[0, 0, :, [0, 3]] == 255).all() and (images[0, 0, :, 1:3] < 255).all()
