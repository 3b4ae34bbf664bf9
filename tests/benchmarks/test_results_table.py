"""The table of results: which learning rate counts, medians, every seed, budgets side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results_table
from benchmarks.peers import GAUSSIAN, GLOW
from benchmarks.variants import BASELINE


def row(variant: str, seed: int, bits: float | None, **more: Any) -> dict[str, Any]:
    return {"variant": variant, "seed": seed, "bits_per_dim": bits, **more}


def test_every_column_has_the_learning_rate_that_was_best_at_the_first_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [row(BASELINE, 0, 4.5, budget=1.0), row(BASELINE, 2, None, budget=1.0), row(BASELINE, 1, 4.6, budget=1.0)]
    ours += [row("lr 2e-3", 0, 4.9, budget=1.0), row("qk norm", 0, 2.0, budget=1.0)]
    ours += [row(BASELINE, 0, 4.4, budget=4.0), row("lr 2e-3", 0, 4.3, budget=4.0), row("lr 2e-3", 1, 4.1, budget=4.0)]
    ours += [
        row("clip 1", 0, 4.0),
        row("rotary", 0, 3.5),
        row("rotary@0.5", 0, 3.8),
        row("clip 1+rotary", 0, 3.6),
    ]  # of old: no budget
    others = [row(GAUSSIAN, 0, 6.5, lr=None), row(GLOW, 0, 4.8, lr=1e-3), row(GLOW, 0, 4.7, lr=3e-3)]
    others += [row(GLOW, 1, 4.75, lr=3e-3), row(GLOW, 0, 4.2, lr=3e-3, budget=4.0)]
    for name, rows in (("ours", ours), ("others", others)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"set": "digits", "rows": rows}))
    files = [str(tmp_path / "ours.json"), str(tmp_path / "others.json")]
    assert results_table.main(["--best", "rotary", "--before", "clip 1", "--also", "clip 1+rotary", "--", *files]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| bits/dim | digits x1 | digits x4 |",
        "| --- | --- | --- |",
        "| official recipe, best learning rate | 4.600 (4.500, 4.600, blew up) | 4.200 (4.300, 4.100) |",
        "| `best` before | 4.000 |  |",
        "| `best` before, with rotary | 3.600 |  |",
        "| `best` | 3.500 |  |",
        "| `best`, half the time | 3.800 |  |",
        "| Gaussian, full covariance | 6.500 |  |",
        "| Glow (normflows) | 4.725 (4.700, 4.750) | 4.200 |",
    ]


def test_a_file_that_is_none_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results_table.main(["--best", "a", "--before", "b", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
