"""`tarflow inpaint`: a picture, a mask, draws of what lies beneath it, and one line of what they are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tarflow
from flow_cases import build
from tarflow.checkpoint import write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.measure import Measure

QUICK = ("-n", "3", "--warmup", "4", "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inpaint")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "image.png")
    mask = np.zeros((4, 4), dtype=np.uint8)
    for name, rows in (("black", 0), ("lower", 2), ("white", 4)):
        mask[4 - rows :] = 255
        Image.fromarray(mask).save(root / f"{name}.png")
    (root / "broken.png").write_bytes(b"no picture")
    for name, case, training in (
        ("uniform", "bounded_conditional", TrainingConfig(steps=1, noise="uniform")),
        ("noisy", "bounded", TrainingConfig(steps=1, noise_std=0.3)),
        ("causal", "causal", TrainingConfig(steps=1, noise="uniform")),
    ):
        flow = build(case, torch.float32)
        flow.save_pretrained(root / name)
        names = tuple("abc"[: flow.conditions.size])
        write_config(
            root / name, RunConfig(flow.config, DataConfig(source="x", levels=16, class_names=names), training)
        )
    return root


def test_what_is_given_stays_and_the_rest_is_what_python_draws(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(place / "uniform"), str(place / "image.png"), "--mask", str(place / "lower.png"), "--class", "b"]
    assert main(["inpaint", *arguments, "--out", str(tmp_path / "x.npz"), "--seed", "5", *QUICK]) == 0
    said = capsys.readouterr().err
    assert "3 draws of Markov chains, acceptance" in said and "effective sample size" in said
    stored = np.load(tmp_path / "x.npz")
    images = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2)
    assert stored["labels"].tolist() == [1, 1, 1]
    levels = torch.from_numpy(np.array(Image.open(place / "image.png"))).int() * 15 // 255
    given = (images[:, 0, :2].int() * 15 / 255).round()
    assert (given - levels[:2]).abs().max() <= 1  # of sixteen levels, which are made of 256 by rounding
    assert (images[0] == images[0, :, :2].repeat(1, 2, 1)).float().mean() < 0.8
    flow = tarflow.TarFlow.from_pretrained(place / "uniform")
    x = Measure(16, "uniform").clean(((images[:1].int() * 15 + 127) // 255).to(torch.uint8))
    mask = torch.arange(4).view(4, 1).expand(4, 4) >= 2
    drawn = tarflow.inpaint(flow, x, mask, torch.tensor([1]), 3, chains=3, steps=20, warmup=4, seed=5)
    want = Measure(16, "uniform").pixels(drawn.samples[:, 0])
    got = ((images.int() * 15 + 127) // 255).to(torch.uint8)
    assert torch.equal(got, want)


def test_a_noisy_model_and_one_that_walks_forwards(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, said in (("noisy", "Markov chains"), ("causal", "3 exact draws")):
        arguments = [str(place / run), str(place / "image.png"), "--mask", str(place / "lower.png")]
        assert main(["inpaint", *arguments, "--out", str(tmp_path / f"{run}.png"), *QUICK]) == 0
        assert said in capsys.readouterr().err and (tmp_path / f"{run}.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--mask": "black.png"}, "--mask: expected white where to draw, got none"),
        ({"--mask": "broken.png"}, "broken.png"),
        ({"--mask": "nowhere.png"}, "nowhere.png"),
        ({"image": "broken.png"}, "broken.png"),
        ({"image": "."}, "expected one picture, got "),
        ({"-n": "0"}, "-n: expected a positive number, got 0"),
        ({"--class": "zebra"}, "class 'zebra': not one of this model's"),
        ({"run": "noisy", "--class": "a"}, "--class: "),
    ],
)
def test_bad_input_is_one_line(
    place: Path, tmp_path: Path, changes: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if changes.get("image") == ".":
        (place / "two").mkdir(exist_ok=True)
        for name in "ab":
            Image.open(place / "image.png").save(place / "two" / f"{name}.png")
        changes = {"image": "two"}
    given = {"run": "uniform", "image": "image.png", "--mask": "lower.png", "-n": "2"} | changes
    words = ["inpaint", str(place / given.pop("run")), str(place / given.pop("image"))]
    given["--mask"] = str(place / given["--mask"])
    words += [word for pair in given.items() for word in pair]
    out = tmp_path / "out.png"
    assert main([*words, "--out", str(out), "--warmup", "2", "--device", "cpu"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and len(said.splitlines()) == 1 and not out.exists(), said
