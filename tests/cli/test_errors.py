"""Bad input is one clear line on stderr that names it, exit code 2, no traceback, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flow_cases import build
from tarflow.checkpoint import write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and files, good ones and bad ones."""
    root = tmp_path_factory.mktemp("place")
    for name, case, training in (
        ("run", "conditional", TrainingConfig(steps=1)),
        ("unconditional", "unconditional", TrainingConfig(steps=1)),
        ("uniform", "unconditional", TrainingConfig(steps=1, noise="uniform")),
    ):
        flow = build(case, torch.float32)
        flow.save_pretrained(root / name)
        names = tuple("abc"[: flow.config.num_classes])
        write_config(root / name, RunConfig(flow.config, DataConfig(source="digits", class_names=names), training))
    (root / "empty").mkdir()
    (root / "garbage.pth").write_bytes(b"not a checkpoint")
    (root / "bad.toml").write_text("[model\n")
    (root / "field.toml").write_text("[model]\nwidht = 64\n")
    (root / "section.toml").write_text("[modell]\nwidth = 64\n")
    (root / "mixed").mkdir()
    for i, size in enumerate([(4, 4), (4, 6)]):
        Image.fromarray(np.zeros(size, np.uint8)).save(root / "mixed" / f"{i}.png")
    (root / "broken").mkdir()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "broken" / "good.png")
    (root / "broken" / "bad.png").write_bytes(b"no image")
    (root / "noweights").mkdir()
    (root / "noweights" / "config.json").write_text((root / "run" / "config.json").read_text())
    (root / "badjson").mkdir()
    (root / "badjson" / "config.json").write_text("{")
    return root


CASES = {
    "no such command": ("smaple", ["smaple", "sample"]),
    "missing arguments": ("sample", ["--out"]),
    "unknown option": ("sample {p}/run --out {o}.png --guidence 2", ["--guidence"]),
    "not a number": ("sample {p}/run --out {o}.png -n five", ["five", "-n"]),
    "no samples": ("sample {p}/run --out {o}.png -n 0", ["-n", "0"]),
    "no such run": ("sample {p}/nowhere --out {o}.png", ["nowhere"]),
    "a directory that is no run": ("sample {p}/empty --out {o}.png", ["empty", "config.json"]),
    "a config that is not JSON": ("sample {p}/badjson --out {o}.png", ["badjson/config.json", "JSON"]),
    "no weights": ("sample {p}/noweights --out {o}.png", ["noweights/model.safetensors"]),
    "unknown class": ("sample {p}/run --out {o}.png --classes zebra", ["zebra", "a, b, c"]),
    "class of an unconditional model": ("sample {p}/unconditional --out {o}.png --classes 1", ["--classes"]),
    "guidance without classes": ("sample {p}/unconditional --out {o}.png --guidance 2", ["guidance", "temperature"]),
    "negative guidance": ("sample {p}/run --out {o}.png --guidance -1", ["guidance", "-1"]),
    "temperature without guidance": ("sample {p}/run --out {o}.png --temperature 0.5", ["--guidance"]),
    "temperature of zero": ("sample {p}/run --out {o}.png --guidance 1 --temperature 0", ["temperature"]),
    "sigma and no denoising": ("sample {p}/run --out {o}.png --no-denoise --noise-std 0.1", ["--noise-std"]),
    "unknown kind of output": ("sample {p}/run --out {o}.jpg", [".jpg"]),
    "batch size of zero": ("sample {p}/run --out {o}.png --batch-size 0", ["batch_size"]),
    "no such device": ("sample {p}/run --out {o}.png --device cuda", ["cuda"]),
    "neither recipe nor data": ("train --out {o}", ["--recipe", "--data"]),
    "unknown recipe": ("train --recipe digit --out {o}", ["digit", "digits"]),
    "recipe that is not TOML": ("train --recipe {p}/bad.toml --out {o}", ["bad.toml"]),
    "recipe with an unknown field": ("train --recipe {p}/field.toml --data digits --out {o}", ["widht", "width"]),
    "recipe with an unknown section": ("train --recipe {p}/section.toml --data digits --out {o}", ["modell"]),
    "impossible width": ("train --recipe digits --out {o} --width 65", ["width", "65"]),
    "impossible patch": ("train --recipe digits --out {o} --patch-size 3", ["patch_size", "3"]),
    "steps and epochs": ("train --recipe digits --out {o} --steps 5 --epochs 1", ["steps", "epochs"]),
    "negative rate": ("train --recipe digits --out {o} --lr -1", ["lr", "-1"]),
    "no such data": ("train --data {p}/nowhere --out {o}", ["nowhere"]),
    "misspelt data": ("train --data digit --out {o}", ["digit", "digits"]),
    "folder without images": ("train --data {p}/empty --out {o}", ["empty"]),
    "images of several sizes": ("train --recipe digits --data {p}/mixed --out {o}", ["0.png", "1.png"]),
    "a file that is no image": ("train --recipe digits --data {p}/broken --out {o}", ["bad.png"]),
    "a run that is there already": ("train --recipe digits --out {p}/run", ["run", "--resume"]),
    "out is a file": ("train --recipe digits --out {p}/bad.toml", ["bad.toml"]),
    "start from garbage": ("train --data digits --init {p}/garbage.pth --out {o}", ["garbage.pth"]),
    "start from nothing": ("train --data digits --init {p}/nowhere --out {o}", ["nowhere"]),
    "recipe on resuming": ("train --recipe digits --resume --out {p}/run", ["--recipe", "--resume"]),
    "evaluate labels that are not there": ("evaluate {p}/run --data {p}/mixed --labels given", ["label"]),
    "evaluate classes that the model lacks": ("evaluate {p}/run", ["unknown class '0'", "a, b, c"]),
    "evaluate without images": ("evaluate {p}/run --data {p}/empty", ["empty"]),
    "evaluate no draws": ("evaluate {p}/unconditional --data {p}/mixed --draws 0", ["draws", "0"]),
    "convert garbage": ("convert {p}/garbage.pth {o} --noise-std 0.1", ["garbage.pth"]),
    "convert without the noise": ("convert {p}/garbage.pth {o}", ["garbage.pth", "--noise-std"]),
    "convert nothing": ("convert {p}/nowhere_0.05.pth {o} --noise-std 0.1", ["nowhere"]),
    "denoise with a model of exact images": ("denoise {p}/uniform digits --out {o}", ["uniform", "--noise-std"]),
    "denoise nothing": ("denoise {p}/run {p}/nowhere --out {o}", ["nowhere"]),
    "denoise with an unknown class": (
        "denoise {p}/unconditional {p}/mixed --class zebra --out {o} --limit 0",
        ["--limit"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_names_it(name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, words = CASES[name]
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    code = main(command.format(p=place, o=tmp_path / "out").split())
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("tarflow: error: ")]
    assert code == 2
    assert len(lines) == 1 and captured.err.splitlines()[-1] == lines[0]
    assert "not expected" not in lines[0] and "Traceback" not in captured.err
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"
    assert captured.out == ""
    assert not list(tmp_path.rglob("*")), "something was left behind"
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
