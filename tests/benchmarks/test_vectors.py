"""The benchmark of densities of vectors: its sets are what they are called, and its flows are trained and compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import vectors


@pytest.mark.parametrize("name", vectors.SETS)
def test_a_set_is_standardised_has_three_parts_and_is_the_same_again(name: str) -> None:
    parts, again, other = vectors.parts(name, 0), vectors.parts(name, 0), vectors.parts(name, 1)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True)) and not torch.equal(parts[0], other[0])
    torch.testing.assert_close(parts[0].mean(dim=0), torch.zeros(parts[0].shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(parts[0].std(dim=0, correction=0), torch.ones(parts[0].shape[1]), atol=1e-5, rtol=0)
    rows = torch.cat(parts)
    assert len(rows.unique(dim=0)) == len(rows), "a row is in two parts"


def test_eight_gaussians_have_the_entropy_that_is_known() -> None:
    """ln 8 + 1 + ln 2π + 2 ln 0.2, less what overlaps, which is next to nothing."""
    generator = torch.Generator().manual_seed(0)
    x = vectors.eight_gaussians(generator, 20_000)
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    centres = 2 * torch.stack([angle.cos(), angle.sin()], dim=1)
    squares = (x.unsqueeze(1) - centres).square().sum(dim=2)
    log_p = (-squares / (2 * 0.2**2)).logsumexp(dim=1) - math.log(8 * 2 * math.pi * 0.2**2)
    assert -log_p.mean() == pytest.approx(math.log(8) + 1 + math.log(2 * math.pi) + 2 * math.log(0.2), abs=0.02)


def test_the_best_weights_on_the_held_out_rows_are_left_and_all_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "ROWS", (200, 50, 50))
    arguments = ["--sets", "two moons", "--flows", "VectorFlow", "--seconds", "0.5", "--seeds", "1"]
    assert vectors.main([*arguments, "--out", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["lr"] for row in rows] == list(vectors.RATES)
    for row in rows:
        assert row["steps"] >= 1 and row["rows"] == 200 and row["dim"] == 2 and math.isfinite(row["nats"])
    (best,) = vectors.chosen(rows)
    assert best["held_out"] == min(row["held_out"] for row in rows)
    assert f"{best['nats']:.3f}" in capsys.readouterr().out


@pytest.mark.extra
def test_the_flows_of_the_other_package_have_a_density() -> None:
    pytest.importorskip("zuko", reason="compares with zuko")
    for variants in vectors.FLOWS.values():
        for name, make in variants.items():
            _, log_prob = make(3)
            assert log_prob(torch.zeros(5, 3)).shape == (5,), name
