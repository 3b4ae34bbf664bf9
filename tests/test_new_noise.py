"""A new noise is one class and one line in `NOISES`: training, scores, samples and the command line take it."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tarflow import checkpoint
from tarflow.cli import main
from tarflow.evaluation.likelihood.evaluation import evaluate_images
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import NOISES, Gaussian, Measure
from tarflow.runs import open_run
from tarflow.training.trainer import train
from training_cases import run_config, splits


class Laplace(Gaussian):
    """x = 2k/(L-1) - 1 + b·ε, ε of density ½ exp(-|ε|)."""

    figure = "laplace_bits_per_dim"
    tweedie = False  # which is a formula of Gaussian noise

    def moments(self, levels: int, std: float) -> tuple[float, float, float]:
        return 2 / (levels - 1), -1.0, 2 * std**2

    def describe(self, std: float) -> str:
        return f"density of x + {std:g}·Laplace"

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        u = super().draw((2, *shape), generator).square()
        v = super().draw((2, *shape), generator).square()
        return 0.5 * (u.sum(dim=0) - v.sum(dim=0))  # each sum is twice an exponential


def test_it_trains_scores_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOISES, "laplace", Laplace())
    drawn = Measure(256, "laplace", 0.2).noisy(torch.zeros(1, 1, 200, 200).to(torch.uint8), torch.Generator()) + 1
    assert float(drawn.abs().mean()) == pytest.approx(0.2, rel=0.02)
    assert float(drawn.var()) == pytest.approx(2 * 0.2**2, rel=0.05)

    train(run_config(steps=3, noise="laplace", noise_std=0.2), splits(), tmp_path / "run")
    metrics = checkpoint.read_metrics(tmp_path / "run")
    assert all(math.isfinite(line["laplace_bits_per_dim"]) for line in metrics if "loss" in line)
    assert any("held_out_laplace_bits_per_dim" in line for line in metrics)

    run = open_run(tmp_path / "run")
    assert (run.noise, run.sigma, run.measure) == ("laplace", None, Measure(17, "laplace", 0.2))
    assert run.pixels(run.sample(n=2)).dtype == torch.uint8
    printed = evaluate_images(run, splits().held_out, Scoring(run.measure)).to_dict()
    assert printed["measure"] == "density of x + 0.2·Laplace"
    assert printed["laplace_bits_per_dim"] > 0 and printed["bits_per_dim"] is None

    out = tmp_path / "scores.csv"
    assert main(["score", str(tmp_path / "run"), "digits", "--out", str(out), "--draws", "1", "--device", "cpu"]) == 0
    with open(out, newline="") as file:
        assert "laplace_bits_per_dim" in next(csv.reader(file))
