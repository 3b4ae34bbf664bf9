"""A run to play with, small and untrained, and files of pictures as a page sends them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import tarflow
from report_cases import make_run
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.play.answers import Answers
from tarflow.play.studio import Studio


def answers_of(path: Path, *, classes: bool = True, noise: str = "gaussian", source: str = "digits") -> Answers:
    """The answers for an untrained flow on the digits."""
    return Answers(Studio(tarflow.open_run(make_run(path, classes=classes, noise=noise, source=source))))


def conditioned(path: Path, condition: str) -> Answers:
    """The answers for an untrained flow on other conditions, whose numbers have means of their own."""
    run = tarflow.open_run(make_run(path, classes=False, noise="gaussian", condition=condition))
    conditions = run.flow.conditions
    for part in getattr(conditions, "parts", [conditions]):
        if part.value_shape == (2,):
            part.mean.copy_(torch.tensor([0.5, -100.0]))
        if part.value_shape == (2, 3):
            part.mean.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    run.flow.save_weights(path / WEIGHTS_FILE)
    return Answers(Studio(run))


def picture(size: tuple[int, int] = (12, 10), mode: str = "L", kind: str = "PNG", **options: Any) -> bytes:
    """A file of random pixels, (width, height)."""
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, kind, **options)
    return file.getvalue()


def sent(*files: bytes, names: tuple[str, ...] = ()) -> str:
    """Files as the page sends them."""
    known = [*names, *(f"{k}.png" for k in range(len(names), len(files)))]
    listed = [{"name": n, "data": base64.b64encode(f).decode()} for n, f in zip(known, files, strict=True)]
    return json.dumps(listed)


def outcome(answer: Any) -> tuple[str, str]:
    """The last word of an answer, and the last result."""
    word, result = "", ""
    for text, found in answer:
        word, result = text, (result if found is None else found)
    return word, result
