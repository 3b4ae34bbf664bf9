"""`tarflow sweep` goes on from rows of the same question only, and looks at its best with other noise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from report_cases import make_run
from tarflow import TarFlow
from tarflow.cli import main
from tarflow.config import from_dict
from tarflow.drawing import Sampler
from tarflow.evaluation.quality.extractors import small_network
from tarflow.sampling.setting import Setting

OPTIONS = ["--guidance", "0", "--extractor", "classifier", "--solver", "sequential"]


pytestmark = pytest.mark.usefixtures("quick_network")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, Setting, int]]:
    """(n, setting, seed) of everything that a sweep draws."""
    calls: list[tuple[int, Setting, int]] = []
    draw = Sampler.pixels

    def noted(self: Sampler, n: int, y: Any, setting: Setting, seed: int, progress: Any) -> torch.Tensor:
        calls.append((n, setting, seed))
        return draw(self, n, y, setting, seed, progress)

    monkeypatch.setattr(Sampler, "pixels", noted)
    return calls


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", classes=True, noise="gaussian")


def sweep(capsys: pytest.CaptureFixture[str], run: Path, *options: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["sweep", str(run), *OPTIONS, *map(str, options)]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_rows_of_the_same_question_are_not_drawn_again(
    run: Path, drawn: list[tuple[int, Setting, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    first = sweep(capsys, run, "-n", 12, "--seed", 3)
    assert [(n, seed) for n, _, seed in drawn] == [(12, 3), (12, 4)]  # the second is the best, once more
    assert sweep(capsys, run, "-n", 12, "--seed", 3) == first
    assert [(n, seed) for n, _, seed in drawn] == [(12, 3), (12, 4), (12, 4)]


@pytest.mark.parametrize("what", ["seed", "samples", "weights", "reference", "extractor"])
def test_rows_of_another_question_are_drawn_anew(
    what: str,
    run: Path,
    drawn: list[tuple[int, Setting, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep(capsys, run, "-n", 12)
    options = {"seed": ["-n", 12, "--seed", 5], "samples": ["-n", 13], "reference": ["-n", 12, "--reference", 900]}
    if what == "weights":
        flow = TarFlow.from_pretrained(run)
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter += 0.02
        flow.save_weights(run / "model.safetensors")
    if what == "extractor":
        monkeypatch.setattr(small_network, "STEPS", 6)
        monkeypatch.setattr(small_network, "DESCRIPTION", "another network")
        monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    before = len(drawn)
    found = sweep(capsys, run, *options.get(what, ["-n", 12]))
    assert len(drawn) - before == 2, "the row, and the best once more"
    shutil.rmtree(run / "sweep")
    assert sweep(capsys, run, *options.get(what, ["-n", 12]))["rows"] == found["rows"]


def test_the_best_is_measured_again_with_noise_of_its_own(
    run: Path, drawn: list[tuple[int, Setting, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = sweep(capsys, run, "-n", 12, "--strength", "0", "1")
    (best,) = [row for row in found["rows"] if row["setting"] == found["best"]]
    assert [seed for _, _, seed in drawn] == [0, 0, 1] and drawn[-1][1] == from_dict(Setting, found["best"])
    assert found["again"].keys() == best["figures"].keys()
    assert found["again"]["FD-Classifier"]["value"] != best["figures"]["FD-Classifier"]["value"]
