"""A class is one, however its accents are spelled: NFC, as most systems write a name, or NFD, as macOS does."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flow_cases import build
from tarflow.checkpoint import Run
from tarflow.config import DataConfig, RunConfig
from tarflow.data.errors import DataError
from tarflow.data.load import load, load_all
from tarflow.data.names import class_finder
from tarflow.drawing import class_number

NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def folder(root: Path, *names: str) -> str:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(np.full((4, 4), 40 * number + k, np.uint8)).save(root / name / f"{number}{k}.png")
    return str(root)


@pytest.mark.parametrize(("ours", "theirs"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_a_class_is_known_in_either_spelling(ours: str, theirs: str, tmp_path: Path) -> None:
    assert NFC != NFD
    here = load(folder(tmp_path / "here", "bar", ours))
    assert here.train.class_names == ("bar", NFC)
    there, _ = load_all(folder(tmp_path / "there", theirs, "bar"), class_names=here.train.class_names)
    assert there.labels is not None and sorted(there.labels.tolist()) == [0] * 4 + [1] * 4
    old, _ = load_all(str(tmp_path / "there"), class_names=("bar", ours))  # as a run from before has it
    assert old.labels is not None and torch.equal(old.labels, there.labels) and old.class_names == ("bar", ours)
    with pytest.raises(DataError, match="unknown class"):
        load_all(str(tmp_path / "there"), class_names=("bar", "cafe"))


def test_splits_and_folders_in_both_spellings_have_one_class(tmp_path: Path) -> None:
    root = tmp_path / "split"
    folder(root / "train", "bar", NFC), folder(root / "val", "bar", NFD)
    assert load(str(root)).held_out.class_names == ("bar", NFC)
    both, _ = load_all(folder(tmp_path / "both", "bar", NFC, NFD))
    assert both.class_names == ("bar", NFC) and both.labels is not None and both.labels.sum() == 8


def test_a_class_is_asked_for_in_either_spelling() -> None:
    assert [class_finder(("bar", NFD, NFC))(name) for name in (NFC, NFD, "bar", "baz")] == [2, 1, 0, None]
    flow = build("conditional", torch.float32)
    run = Run(Path("run"), flow, RunConfig(flow.config, DataConfig(class_names=("bar", NFC, "baz"))))
    assert class_number(run, NFD) == class_number(run, NFC) == 1
