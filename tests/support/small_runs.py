"""Runs of a second, by the command line: folders of small images, and a flow that hardly learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tarflow.cli import main

OPTIONS = (
    *(
        "--image-size",
        "4",
        "--channels",
        "1",
        "--patch-size",
        "2",
        "--width",
        "64",
        "--layers",
        "1",
        "--steps",
        "4",
        "--batch-size",
        "8",
        "--warmup-steps",
        "1",
    ),
    *("--evaluate-every", "4", "--save-every", "2", "--sample-every", "0", "--evaluate-images", "8"),
)


def write_images(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (4, 4), mode: str = "L") -> Path:
    """`count` PNG files of random pixels, named by their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        shape = size if mode == "L" else (*size, 3)
        pixels = np.random.default_rng(seed + k).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03}.png", compress_level=0)  # all of one size
    return folder


def train(data: Path | str, out: Path, *options: str) -> int:
    """`tarflow train`; its exit code."""
    return main(["train", "--data", str(data), "--out", str(out), *OPTIONS, *options])


def resume(out: Path, *options: str) -> int:
    """`tarflow train --resume`, as users do it; its exit code."""
    return main(["train", "--out", str(out), "--resume", *options])


def evaluate(capsys: pytest.CaptureFixture[str], run: Path, *options: str) -> dict[str, Any]:
    """What `tarflow evaluate` prints."""
    capsys.readouterr()
    assert main(["evaluate", str(run), "--draws", "1", "--float64", "0", *options]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values
