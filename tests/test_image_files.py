"""Where images go: each under its own number and label, whatever the batches; as files, an archive or a sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flow_cases import build
from tarflow.checkpoint import Run
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.drawing import ImageWriter
from tarflow.measure import Measure, requantize
from tarflow.pictures import grid

LABELS = [2, 0, -1, 1, 2, 0, 0, 1, 2, 1, 0]
BATCHES = ([3, 4, 5, 6], [0, 1, 2], [7, 8, 9, 10])  # as they finish


@pytest.fixture
def run() -> Run:
    flow = build("conditional", torch.float32, image_size=(4, 6), channels=3)
    data = DataConfig(levels=16, class_names=("a cat", "dog/wolf", "eel"))
    return Run(Path("run"), flow, RunConfig(flow.config, data, TrainingConfig(steps=1)))


def levels() -> Tensor:
    """Eleven images of sixteen levels, all pixels of all of them different as far as that goes."""
    return torch.randint(0, 16, (11, 3, 4, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def write(out: Path, run: Run, labels: list[int] | None = LABELS, columns: int | None = None) -> Tensor:
    """Write the images batch by batch; what they should look like, (11, 3, 4, 6)."""
    x = Measure(16, "gaussian", 1.0).clean(levels())
    batches = BATCHES if out.suffix == "" else (range(0, 4), range(4, 11))  # a sheet and an archive are in order
    with ImageWriter(out, run, len(x), labels, columns) as writer:
        for rows in batches:
            writer.add(list(rows), x[list(rows)])
    return requantize(levels(), 16, 256)


def test_a_directory_has_a_file_for_each_by_its_number_and_class(run: Run, tmp_path: Path) -> None:
    expected = write(tmp_path / "folder", run)
    names = ["eel", "a_cat", "null", "dog_wolf", "eel", "a_cat", "a_cat", "dog_wolf", "eel", "dog_wolf", "a_cat"]
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        f"{k:02}-{name}.png" for k, name in enumerate(names)
    ]
    for k, name in enumerate(names):
        pixels = np.array(Image.open(tmp_path / "folder" / f"{k:02}-{name}.png"))
        assert np.array_equal(pixels, expected[k].permute(1, 2, 0).numpy())


def test_without_classes_a_number_is_all_of_the_name(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "folder", run, None)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [f"{k:02}.png" for k in range(11)]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_an_archive_has_images_with_channels_last_and_labels_in_their_order(
    labels: list[int] | None, run: Run, tmp_path: Path
) -> None:
    expected = write(tmp_path / "all.npz", run, labels)
    archive = np.load(tmp_path / "all.npz")
    assert archive["images"].shape == (11, 4, 6, 3) and archive["images"].dtype == np.uint8
    assert np.array_equal(archive["images"], expected.permute(0, 2, 3, 1).numpy())
    assert (archive["labels"].tolist() == labels) if labels else set(archive) == {"images"}


def test_a_sheet_has_them_row_by_row(run: Run, tmp_path: Path) -> None:
    expected = write(tmp_path / "sheet.png", run, columns=4)
    enlarged = expected.repeat_interleave(8, dim=-2).repeat_interleave(8, dim=-1)
    assert np.array_equal(np.array(Image.open(tmp_path / "sheet.png")), grid(enlarged, 4).permute(1, 2, 0).numpy())


def test_after_an_error_no_sheet_pretends_to_be_whole(run: Run, tmp_path: Path) -> None:
    writer = ImageWriter(tmp_path / "all.npz", run, 11, None, None)
    with pytest.raises(RuntimeError, match="half-way"), writer:
        writer.add([0], Measure(16, "gaussian", 1.0).clean(levels()[:1]))
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
