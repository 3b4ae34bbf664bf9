"""Other flows: the logits that they see, the learning rate that is chosen, rows on a tiny budget."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import bench, peers
from benchmarks.bench import SETUPS


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = dataclasses.replace(SETUPS["digits"], model=SETUPS["digits"].model | {"layers": (1, 1)}, batch=8, steps=8)
    monkeypatch.setitem(SETUPS, "digits", setup)
    monkeypatch.setattr(bench, "TIMED", 1)


class Normal(peers.Peer):
    """The logits are N(0, 1), each by itself."""

    def of_logits(self, v: Tensor, y: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, 1.0).log_prob(v).flatten(1).sum(dim=1)


def test_the_density_of_pixels_counts_the_logits() -> None:
    x = torch.linspace(-1, 1, 10_001, dtype=torch.float64)[:, None, None, None]
    density = Normal().log_prob(x, torch.zeros(len(x), dtype=torch.int64)).exp()
    end = torch.tensor(0.95 / 0.05, dtype=torch.float64).log()  # the logits of black and white
    inside = torch.distributions.Normal(0.0, 1.0).cdf(end) * 2 - 1
    torch.testing.assert_close(torch.trapezoid(density, x.flatten()), inside, atol=1e-6, rtol=0)


def test_the_best_learning_rate_goes_on_to_other_seeds_and_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(bench: Any, kind: peers.Kind, facts: Any, lr: float, budget: float, seed: int) -> dict[str, Any]:
        bits = None if lr > 0.05 else abs(lr - (1e-2 if kind.name == peers.GLOW else 1e-3))
        return {"variant": kind.name, "lr": lr, "budget": budget, "seed": seed, "bits_per_dim": bits}

    monkeypatch.setattr(peers, "train", train)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    out = tmp_path / "rows.json"
    command = ["--set", "digits", "--flows", "glow", "zuko", "--lrs", "1e-1", "1e-2", "1e-3", "--out", str(out)]
    assert peers.main(command) == 0
    assert peers.main([*command, "--budgets", "1", "4", "--seeds", "0", "1"]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["variant"] for row in rows[:7]] == [peers.GAUSSIAN, *[peers.GLOW] * 3, *[peers.ZUKO] * 3]
    assert [(row["variant"], row["lr"], row["budget"], row["seed"]) for row in rows[7:]] == [
        (name, lr, budget, seed)
        for budget, seed in ((1, 1), (4, 0), (4, 1))
        for name, lr in ((peers.GLOW, 1e-2), (peers.ZUKO, 1e-3))
    ]


def test_peers_need_their_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "zuko" else object())
    assert peers.main(["--set", "digits", "--flows", "zuko", "glow", "--out", str(tmp_path / "rows.json")]) == 2
    assert capsys.readouterr().err == "zuko: not installed; pip install zuko\n"


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
def test_peers_are_trained_and_scored_as_ours(tmp_path: Path) -> None:
    for package in ("normflows", "zuko"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    out = tmp_path / "rows.json"
    assert peers.main(["--set", "digits", "--lrs", "1e-3", "--out", str(out)]) == 0
    rows = {row["variant"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(rows) == {peers.GAUSSIAN, peers.GLOW, peers.SPLINE, peers.ZUKO}
    # What `tarflow evaluate` says of this Gaussian, and what a model in its first steps cannot reach.
    assert rows[peers.GAUSSIAN]["bits_per_dim"] == pytest.approx(3.0, abs=0.2)
    for name in (peers.GLOW, peers.SPLINE, peers.ZUKO):
        assert rows[name]["bits_per_dim"] > 3 and rows[name]["steps"] >= 1 and rows[name]["seconds"] > 0
