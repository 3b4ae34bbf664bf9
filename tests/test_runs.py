"""The public way in: a run opened, drawn from and scored with, and one that is made of data of one's own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tarflow
from tarflow import checkpoint, kept
from tarflow.cli import main
from tarflow.data.load import load_dataset, open_scan
from tarflow.measure import to_8bit
from tarflow.run_data import image_options
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.setting import Setting, StoredSetting
from tarflow.training.trainer import train
from training_cases import run_config, splits

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(run_config(steps=4, save_every=4), splits(), out)
    return out


@pytest.fixture
def run(path: Path) -> Iterator[tarflow.Run]:
    yield tarflow.open_run(path)
    for file in (kept.SETTING_FILE, kept.SOLVERS_FILE):
        (path / file).unlink(missing_ok=True)


def test_a_run_knows_its_data_and_its_noise(run: tarflow.Run) -> None:
    assert (run.sigma, run.noise, run.levels, run.class_names) == (0.05, "gaussian", 17, ("dark", "light"))
    assert run.setting == Setting(denoise=0.05)
    assert not run.flow.training and run.config.model == run.flow.config


def test_samples_by_the_name_of_a_class_are_those_of_its_number(run: tarflow.Run) -> None:
    right = tarflow.sample(run.flow, 3, [1, 1, 1], seed=5, denoise=0.05, solver="sequential")
    for name in ("light", 1, np.int64(1), ["light"], [1]):
        assert torch.equal(run.sample(name, 3, seed=5, solver="sequential"), right)
    both = tarflow.sample(run.flow, 3, [0, 1, 0], denoise=0.05, solver="sequential")
    for names in (None, ["dark", "light"], (0, "light")):
        assert torch.equal(run.sample(names, 3, solver="sequential"), both)
    null = tarflow.sample(run.flow, 1, [-1], denoise=0.05, solver="sequential")
    assert torch.equal(run.sample("null", solver="sequential"), null)
    assert run.sample().shape == (2, 1, 4, 4) and run.sample(["dark"] * 3).shape == (3, 1, 4, 4)
    assert run.pixels(right).dtype == torch.uint8 and int(run.pixels(right).max()) <= 16


@pytest.mark.parametrize("wrong", ["bright", 2, -2, True, 1.0, ["dark", "bright"]])
def test_a_class_that_is_none_is_named(run: tarflow.Run, wrong: Any) -> None:
    with pytest.raises(ValueError, match="class.*: .*(known: dark, light, or null|expected a whole number)"):
        run.sample(wrong)


def test_what_a_sweep_kept_is_the_default_as_long_as_it_is_of_these_weights(run: tarflow.Run) -> None:
    best = Setting(Guidance(1.5, rule="stable"), 0.1)
    kept.save_setting(run, StoredSetting(checkpoint.weights_digest(run.path), best, "FD", 1.0, 10, 3))
    assert run.setting == best
    guided = tarflow.sample(run.flow, 1, [0], best.guidance, denoise=0.1, solver="sequential")
    assert torch.equal(run.sample("dark", solver="sequential"), guided)
    plain = run.sample("dark", setting=Setting(), solver="sequential")
    assert torch.equal(plain, tarflow.sample(run.flow, 1, [0], solver="sequential"))
    kept.save_setting(run, StoredSetting("others", best, "FD", 1.0, 10, 3))
    assert run.setting == Setting(denoise=0.05)


def test_scores_are_those_that_the_command_writes(run: tarflow.Run, tmp_path: Path) -> None:
    images = splits().held_out.images[:5]
    (tmp_path / "images").mkdir()
    for k, image in enumerate(images):
        Image.fromarray((image[0].float() * 255 / 16).round().byte().numpy()).save(tmp_path / "images" / f"{k}.png")
    assert main(["score", str(run.path), str(tmp_path / "images"), "--out", str(tmp_path / "scores.csv")]) == 0
    rows = (tmp_path / "scores.csv").read_text().splitlines()[1:]
    written = torch.tensor([float(row.split(",")[1]) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(run.score(images), written)
    assert not torch.equal(run.score(images, "dark"), run.score(images, "light"))
    assert torch.equal(run.score(images, "null"), run.score(images, -1))
    assert run.bits_per_dim(run.score(images)).shape == (5,)
    assert run.noisy(images).shape == images.shape and torch.equal(run.noisy(images, 1), run.noisy(images, 1))


def test_a_model_alone_can_be_drawn_from_and_says_what_it_lacks(run: tarflow.Run, tmp_path: Path) -> None:
    run.flow.save_pretrained(tmp_path)
    alone = tarflow.open_run(tmp_path)
    assert alone.sigma is None and alone.class_names == ("0", "1") and alone.levels == 256
    assert alone.sample("1", 2).shape == (2, 1, 4, 4)
    for call in (lambda: alone.score(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)), lambda: alone.noisy(torch.zeros(1))):
        with pytest.raises(ValueError, match="no section `training`"):
            call()


class Mine(torch.utils.data.Dataset[Any]):
    classes = ("cat", "dog")

    def __init__(self, count: int = 24, kind: str = "tensor") -> None:
        self.count, self.kind = count, kind

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index >= self.count:
            raise IndexError
        image = (torch.arange(48).view(3, 4, 4) * (index + 3) % 200 + 50 * (index % 2)).to(torch.uint8)
        label = index % 2
        return {
            "tensor": (image, label),
            "array": (image.permute(1, 2, 0).numpy(), np.int64(label)),
            "picture": (Image.fromarray(image.permute(1, 2, 0).numpy()), torch.tensor(label)),
            "grey": (image[0], label),
            "unlabelled": image,
        }[self.kind]


def test_a_data_set_of_ones_own_reaches_the_trainer(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    fields: dict[str, Any] = dict(patch_size=2, width=64, layers=(1, 1), batch_size=8, sample_every=0)
    made = tarflow.train(Mine(), tmp_path / "run", steps=3, device="cpu", report=said.append, **fields)
    assert isinstance(made, tarflow.Run) and made.class_names == ("cat", "dog")
    assert made.config.model.image_shape == (4, 4) and made.config.model.channels == 3
    assert made.config.training is not None and made.config.training.steps == 3 and len(said) >= 3
    assert made.sample("dog", 2).shape == (2, 3, 4, 4)
    with pytest.raises(FileExistsError, match="holds a run already"):
        tarflow.train(Mine(), tmp_path / "run", steps=3, device="cpu", **fields)
    again = tarflow.train(Mine(), tmp_path / "run", steps=3, device="cpu", resume=True, **fields)
    assert torch.equal(again.flow.blocks[0].position, made.flow.blocks[0].position)
    with pytest.raises(tarflow.ConfigError, match="the training images are not those"):
        tarflow.train(Mine(40), tmp_path / "run", steps=3, device="cpu", resume=True, **fields)
    with pytest.raises(tarflow.ConfigError, match="stepss: no such field of a run"):
        tarflow.train(Mine(), tmp_path / "other", stepss=3)


def test_images_may_come_in_many_forms() -> None:
    right = load_dataset(Mine(), Mine(5))
    assert right.own_split and len(right.held_out) == 5 and right.held_out.class_names == right.train.class_names
    for kind in ("array", "picture"):
        found = load_dataset(Mine(kind=kind), Mine(5, kind)).train
        assert torch.equal(found.images, right.train.images) and torch.equal(found.labels, right.train.labels)
    assert load_dataset(Mine(kind="grey"), Mine(5, "grey")).train.images.shape == (24, 1, 4, 4)
    assert load_dataset(Mine(kind="unlabelled")).train.labels is None
    assert load_dataset([(image, 1) for image in right.train.images]).train.class_names == ("0", "1")
    split = load_dataset(Mine(20), held_out_fraction=0.25)
    assert not split.own_split and (len(split.train), len(split.held_out)) == (15, 5)
    with pytest.raises(ValueError, match="data: the train split has labels and the validation split has none"):
        load_dataset(Mine(), Mine(5, "unlabelled"))


BYTES = torch.zeros(3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "data: holds no images"),
        (
            [BYTES.float()],
            r"data\[0\]: expected uint8 pixels of 1 or 3 channels, before they are scaled, got ",
        ),
        ([BYTES, "cat"], r"data\[1\]: expected a picture, an array or a tensor, got str"),
        ([BYTES, BYTES[:, :2]], r"data\[0\] is 4x4 and data\[1\] is 2x4"),
        ([torch.zeros(4, 4, 4, dtype=torch.uint8)], r"data\[0\]: expected uint8 pixels of 1 or 3 channels"),
        ([(BYTES, 0), BYTES], r"data\[1\]: expected every item to have a label"),
        ([(BYTES, 0.5)], r"data\[0\]: label: expected a whole number, got 0.5"),
        ([(BYTES, True)], r"data\[0\]: label: expected a whole number, got True"),
        ([(BYTES, -1)], r"data\[0\]: label: expected 0 or more"),
        ([BYTES + 20], r"data\[0\]: expected levels 0 to 16, got 20"),
    ],
)
def test_an_item_that_is_something_else_is_named(items: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(items, levels=17)


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_no_tutorial_needs_a_name_that_may_change(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("tarflow"), ast.unparse(node)
            if isinstance(node, ast.Import):
                assert not any(alias.name.startswith("tarflow.") for alias in node.names), ast.unparse(node)


# --- Pillow's pictures ------------------------------------------------------------------------------------------------


def test_pictures_become_pixels_as_their_files_do(run: tarflow.Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = {
        "grey": Image.fromarray(rng.integers(0, 256, (9, 12), np.uint8)),
        "colour": Image.fromarray(rng.integers(0, 256, (20, 7, 3), np.uint8)),
        "clear": Image.fromarray(rng.integers(0, 256, (8, 8, 4), np.uint8)),
        "wide": Image.fromarray(rng.integers(0, 65536, (8, 8), np.uint16)),
        "palette": Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).quantize(9),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures["turned"] = pictures["colour"]
    pictures["turned"].save(tmp_path / "turned.png", exif=turned)
    pictures["turned"] = Image.open(tmp_path / "turned.png")
    pixels = tarflow.from_pil(pictures.values(), run)
    assert pixels.shape == (6, 1, 4, 4) and pixels.dtype == torch.uint8 and int(pixels.max()) <= 16
    for found, name in zip(pixels, pictures, strict=True):
        scanned = next(iter(open_scan(str(tmp_path / f"{name}.png"), image_options(run))))
        assert scanned.pixels is not None and torch.equal(found, scanned.pixels), name
    assert torch.equal(tarflow.from_pil(pictures["grey"], run), pixels[:1])
    assert run.score(pixels).shape == (6,)


def test_what_a_run_draws_comes_back_from_pictures(run: tarflow.Run) -> None:
    pixels = run.pixels(run.sample(n=3))
    assert torch.equal(tarflow.from_pil(tarflow.to_images(pixels, run), run), pixels)
    assert torch.equal(tarflow.from_pil(tarflow.to_images(run.measure.clean(pixels), run), run), pixels)
    flow = tarflow.from_pil(tarflow.to_images(pixels, run), run.flow)  # which knows of no levels but 256
    assert torch.equal(flow, to_8bit(pixels, 17))


def test_pictures_that_are_none_are_named(run: tarflow.Run) -> None:
    grey = Image.new("L", (4, 4))
    for images, of, message in (
        ([], run, "images: holds no images"),
        ([grey, "a.png"], run, "images[1]: expected a picture, an array or a tensor, got str"),
        ([grey, Image.new("F", (4, 4))], run, "images[1]: floating-point pixels"),
        (grey, run.path, "of: expected a run or a TarFlow"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            tarflow.from_pil(images, of)


def test_more_than_8_bits_are_read_by_the_range_of_the_training(tmp_path: Path) -> None:
    many = [np.random.default_rng(k).integers(0, 4096, (4, 4), np.uint16) for k in range(6)]
    pictures = [Image.fromarray(values) for values in many]
    fields = {"batch_size": 4, "width": 64, "layers": (1,), "patch_size": 2, "value_range": (0, 4095)}
    made = tarflow.train(pictures, tmp_path / "run", steps=1, device="cpu", **fields)
    right = np.rint(np.stack(many)[:, None] * (255 / 4095))
    assert np.array_equal(tarflow.from_pil(pictures, made).numpy(), right)
    assert np.array_equal(tarflow.from_pil(pictures, tarflow.open_run(tmp_path / "run")).numpy(), right)
    with pytest.raises(ValueError, match="value_range: expected two numbers or 'full' for images in memory"):
        tarflow.train(pictures, tmp_path / "other", **{**fields, "value_range": "auto"})


def test_a_printed_run_says_what_it_is(run: tarflow.Run) -> None:
    first, *more = repr(run).splitlines()
    assert first.startswith(f"Run {run.path}: of ") and "17 levels; density of x + 0.05·ε" in first
    assert "\n".join(more) == repr(run.flow)
