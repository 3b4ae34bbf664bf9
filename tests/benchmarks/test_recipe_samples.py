"""Samples of two recipes and other flows, on a tiny budget: rows, their names, what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import ablations, peers, recipe_samples
from benchmarks.ablations import SETUPS


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = dataclasses.replace(SETUPS["digits"], model=SETUPS["digits"].model | {"layers": (1, 1)}, batch=8, steps=8)
    monkeypatch.setitem(SETUPS, "digits", setup)
    monkeypatch.setattr(ablations, "TIMED", 1)


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


def test_peers_need_their_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert peers.main(["--set", "digits", "--out", str(tmp_path / "rows.json")]) == 2
    assert capsys.readouterr().err == "normflows: not installed; pip install normflows\n"


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
def test_peers_are_trained_and_scored_as_ours(tmp_path: Path) -> None:
    pytest.importorskip("normflows", reason="normflows is not installed")
    out = tmp_path / "rows.json"
    assert peers.main(["--set", "digits", "--lrs", "1e-3", "--out", str(out)]) == 0
    rows = {row["variant"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {peers.GAUSSIAN, peers.GLOW, peers.SPLINE}
    # What `tarflow evaluate` says of this Gaussian, and what a model in its first steps cannot reach.
    assert rows[peers.GAUSSIAN]["bits_per_dim"] == pytest.approx(3.0, abs=0.2)
    assert all(rows[name]["bits_per_dim"] > 3 and rows[name]["steps"] >= 1 for name in (peers.GLOW, peers.SPLINE))
