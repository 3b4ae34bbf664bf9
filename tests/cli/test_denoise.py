"""`tarflow denoise` gives a model what its training gave it: the scale of its noise, the labels asked for, the seed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flow_cases import build
from tarflow import NULL_CLASS, TarFlow
from tarflow.checkpoint import write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.data.load import load_all
from tarflow.evaluation.quality.psnr import psnr
from tarflow.measure import Measure, to_8bit
from tarflow.sampling.denoise import denoise
from tarflow.seeding import seeded_generator

SIGMA = 0.4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three classes, and a run of either kind of noise at sixteen levels."""
    root = tmp_path_factory.mktemp("denoise")
    for k, folder in enumerate("abc"):
        (root / "photos" / folder).mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng([k, i]).integers(0, 256, (4, 4), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "photos" / folder / f"{i}.png")
    for name, training in (
        ("uniform", TrainingConfig(steps=1, noise="uniform")),
        ("gaussian", TrainingConfig(steps=1, noise_std=SIGMA)),
    ):
        flow = build("bounded_conditional", torch.float32)
        flow.save_pretrained(root / name)
        data = DataConfig(source=str(root / "photos"), levels=16, class_names=("a", "b", "c"))
        write_config(root / name, RunConfig(flow.config, data, training))
    return root


def cleaned_by(place: Path, tmp_path: Path, run: str, *options: str) -> Tensor:
    out = tmp_path / f"{len(list(tmp_path.iterdir()))}.npz"
    arguments = ["denoise", str(place / run), str(place / "photos"), "--out", str(out), "--device", "cpu"]
    assert main([*arguments, *(["--noise-std", str(SIGMA)] if run == "uniform" else []), *options]) == 0
    return torch.from_numpy(np.load(out)["images"]).permute(0, 3, 1, 2)


def seen(place: Path, run: str) -> tuple[TarFlow, Tensor, Tensor]:
    """The model, the images as it sees them, by hand, and their labels."""
    images = load_all(str(place / "photos"), image_size=4, channels=1, levels=16)[0]
    x = Measure(16, "gaussian", 1.0).clean(images.images)
    if run == "uniform":
        x = (images.images.float() + 0.5) * 2 / 16 - 1  # a level at the middle of its interval
    assert images.labels is not None
    return TarFlow.from_pretrained(place / run), x, images.labels


def shown(x: Tensor, run: str) -> Tensor:
    return to_8bit(Measure(16, run, 1.0).pixels(x), 16)  # type: ignore[arg-type]


@pytest.mark.parametrize("run", ["uniform", "gaussian"])
def test_a_model_is_fed_what_its_training_fed_it(run: str, place: Path, tmp_path: Path) -> None:
    flow, x, labels = seen(place, run)
    assert torch.equal(cleaned_by(place, tmp_path, run), shown(denoise(flow, x, SIGMA, labels), run))
    other = Measure(16, "gaussian", 1.0).clean(Measure(16, run, 1.0).pixels(x)) if run == "uniform" else x - 1 / 16  # type: ignore[arg-type]
    assert not torch.equal(shown(denoise(flow, other, SIGMA, labels), run), shown(denoise(flow, x, SIGMA, labels), run))


def test_a_step_too_small_to_matter_changes_no_pixel(place: Path, tmp_path: Path) -> None:
    """Values at the start of an interval would fall below it by rounding, or by any score."""
    for run in ("uniform", "gaussian"):
        _, x, _ = seen(place, run)
        assert torch.equal(cleaned_by(place, tmp_path, run, "--noise-std", "1e-6"), shown(x, run))


@pytest.mark.parametrize(("option", "label"), [("null", NULL_CLASS), ("b", 1), ("2", 2)])
def test_the_labels_are_those_that_are_asked_for(option: str, label: int, place: Path, tmp_path: Path) -> None:
    flow, x, labels = seen(place, "gaussian")
    found = cleaned_by(place, tmp_path, "gaussian", "--class", option)
    assert torch.equal(found, shown(denoise(flow, x, SIGMA, torch.full((9,), label)), "gaussian"))
    assert not torch.equal(found, shown(denoise(flow, x, SIGMA, labels), "gaussian"))


@pytest.mark.parametrize("seed", [0, 3])
def test_the_noise_that_is_added_is_of_the_seed_and_its_figures_are_of_these_images(
    seed: int, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow, x, labels = seen(place, "gaussian")
    found = cleaned_by(place, tmp_path, "gaussian", "--add-noise", "--seed", str(seed))
    noisy = x + SIGMA * torch.randn(x.shape, generator=seeded_generator(seed, "denoise"))
    cleaned = denoise(flow, noisy, SIGMA, labels)
    assert torch.equal(found, shown(cleaned, "gaussian"))
    said = re.findall(r"([-\d.]+) dB (noisy|denoised)", capsys.readouterr().err)
    assert said == [(f"{psnr(noisy, x):.2f}", "noisy"), (f"{psnr(cleaned, x):.2f}", "denoised")]
    assert said[0][0] != said[1][0]


def test_a_limit_takes_the_first_images(place: Path, tmp_path: Path) -> None:
    whole, few = (cleaned_by(place, tmp_path, "gaussian", *options) for options in ((), ("--limit", "4")))
    assert len(few) == 4 and torch.equal(few, whole[:4])
