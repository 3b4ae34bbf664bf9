"""Nothing is scored twice: how many images go through the flow for `evaluate`, `score` and the report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from report_cases import make_run
from tarflow import TarFlow
from tarflow.cli import main
from tarflow.pictures import save_png
from tarflow.report.build import write_report
from tarflow.report.subject import CLASSES, DRAWS, Settings
from tarflow.runs import open_run

IMAGES, LABELS = 5, 10  # that are scored, and classes of the digits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("passes") / "run", classes=True, noise="uniform")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each pass through a flow in float32, from now on; the comparison with float64 needs another one."""
    sizes: list[int] = []
    real = TarFlow.log_prob_by_token

    def counted(self: TarFlow, x: Tensor, y: Tensor | None = None) -> Tensor:
        if self.dtype == torch.float32:
            sizes.append(len(x))
        return real(self, x, y)

    monkeypatch.setattr(TarFlow, "log_prob_by_token", counted)
    return sizes


@pytest.mark.parametrize(("labels", "columns"), [("given", LABELS), ("marginal", LABELS), ("null", LABELS + 1)])
def test_evaluate_with_all_its_options_scores_each_image_once_a_class(
    labels: str, columns: int, place: Path, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--limit", str(IMAGES), "--draws", "2", "--labels", labels, "--by-patch", "--float64", "2", "--no-save"]
    assert main(["evaluate", str(place), *options, "--device", "cpu", "--against", "inverted"]) == 0
    others = 1 if labels == "null" else LABELS
    assert sum(passes) == 2 * IMAGES * (columns + others)


def test_score_with_maps_scores_each_image_once(place: Path, passes: list[int], tmp_path: Path) -> None:
    run = open_run(place)
    (tmp_path / "photos").mkdir()
    for k in range(IMAGES):
        save_png(tmp_path / "photos" / f"{k}.png", torch.full((1, 8, 8), 40 * k, dtype=torch.uint8))
    for expected in (IMAGES + len(run.images().held_out), IMAGES):  # of held-out images the scores are kept
        passes.clear()
        maps = tmp_path / f"maps {expected}"
        found = run.write_scores(str(tmp_path / "photos"), tmp_path / "scores.csv", "null", draws=1, maps=maps)
        assert found.images == len(list(maps.iterdir())) == IMAGES
        assert sum(passes) == expected


def test_the_report_scores_its_held_out_images_once_a_class(place: Path, passes: list[int], tmp_path: Path) -> None:
    assert LABELS <= CLASSES
    write_report([place], tmp_path / "report", settings=Settings(images=1, limit=IMAGES))
    as_many_of_the_training = IMAGES  # for the verdict, under their own class
    assert sum(passes) == DRAWS * IMAGES * LABELS + as_many_of_the_training
