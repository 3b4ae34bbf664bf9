"""Samples of two recipes, on a tiny budget: rows, their names, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import bench, recipe_samples
from benchmarks.bench import SETUPS


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = dataclasses.replace(SETUPS["digits"], model=SETUPS["digits"].model | {"layers": (1, 1)}, batch=8, steps=8)
    monkeypatch.setitem(SETUPS, "digits", setup)
    monkeypatch.setattr(bench, "TIMED", 1)


@pytest.mark.slow
def test_both_recipes_are_drawn_from_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, sheets = tmp_path / "rows.json", tmp_path / "sheets"
    command = ["--set", "digits", "--extractor", "classifier", "--out", str(out), "--sheets", str(sheets)]
    command += ["-n", "60", "--choose", "50", "--scales", "0", "1", "--reference", "300", "--seeds", "3"]
    assert recipe_samples.main([*command, "--variants", "baseline", "muon 2e-3+bounded scale 4"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["baseline", "muon 2e-3+bounded scale 4"]
    for row in rows:
        assert row["figures"]["FD-Classifier"]["samples"] == 60
        assert len(row["chosen_among"]) == 2
        assert min(row["chosen_among"], key=lambda pair: pair[1])[0] == row["setting"]
    assert rows[0]["figures"] != rows[1]["figures"]
    assert {path.name for path in sheets.iterdir()} == {"baseline-digits.png", "best-digits.png"}
    assert str(tmp_path) not in out.read_text()
    assert recipe_samples.main([*command, "--variants", "qk norm"]) == 2
    assert "qk norm" in capsys.readouterr().err
