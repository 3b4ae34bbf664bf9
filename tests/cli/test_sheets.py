"""Sheets of more classes than have a column each say which class an image is of."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flow_cases import build
from tarflow.checkpoint import write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.pictures import CAPTION
from tarflow.ranks import ALONE
from tarflow.training import monitoring as sheets


def configured(classes: int) -> tuple[Any, RunConfig]:
    flow = build("conditional", torch.float32, num_classes=classes)
    names = tuple(f"kind {k}" for k in range(classes))
    return flow, RunConfig(
        flow.config, DataConfig("nowhere", class_names=names), TrainingConfig(steps=1, noise="uniform")
    )


@pytest.mark.parametrize("classes", [20, 21])
def test_a_sheet_of_samples(classes: int, tmp_path: Path) -> None:
    flow, config = configured(classes)
    flow.save_pretrained(tmp_path / "run")
    write_config(tmp_path / "run", config)
    assert (
        main(["sample", str(tmp_path / "run"), "-n", "4", "--columns", "2", "--out", str(tmp_path / "sheet.png")]) == 0
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        side = 66 if classes > 20 else 34
        assert sheet.size == (2 * side + 2, 2 * (side + CAPTION * (classes > 20)) + 2)


@pytest.mark.parametrize("classes", [20, 21])
def test_a_sheet_of_training(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(sheets, "save_sheet", lambda path, images, **options: found.update(options))
    flow, config = configured(classes)
    sheets.draw_sheet(flow, config, tmp_path / "samples" / "sheet.png", ALONE, nullcontext)
    expected = [f"kind {k % 21}" for k in range(sheets.SHEET_IMAGES)] if classes > 20 else None
    assert found == {"columns": 20 if classes == 20 else None, "captions": expected}
