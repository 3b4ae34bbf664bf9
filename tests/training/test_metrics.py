"""What a run writes down of itself: scores by the labels, the first of equals, rates of steps alone, one clock."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tarflow import checkpoint
from tarflow.config import TrainingConfig
from tarflow.evaluation.likelihood.evaluate import Likelihood, evaluate_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import Measure
from tarflow.model.condition import NULL_CLASS, Classes
from tarflow.training import monitoring as scoring_module
from tarflow.training import trainer as trainer_module
from tarflow.training.interrupt import Interrupted
from tarflow.training.step import training_batch
from tarflow.training.trainer import Diverged, train
from training_cases import poison_batches, run_config, splits


def stop_at(step: int) -> Any:
    def report(metrics: dict[str, Any]) -> None:
        if metrics["step"] == step and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    return report


@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_a_held_out_score_is_that_of_the_averaged_weights_under_the_images_own_labels(
    noise: str, tmp_path: Path
) -> None:
    train(run_config(steps=6, lr=0.05, noise=noise, noise_std=0.2), splits(), tmp_path / "run")
    last = checkpoint.latest_checkpoint(tmp_path / "run")
    assert last is not None
    flow, held_out = checkpoint.open_run(last).flow, splits().held_out
    images = held_out.choice(1000, 0)
    options: dict[str, Any] = {"scoring": Scoring(Measure(17, noise, 0.2), draws=1)}
    expected = evaluate_likelihood(flow, images.images, images.labels, **options)
    name = "held_out_bits_per_dim" if noise == "uniform" else "held_out_noisy_bits_per_dim"
    (found,) = [m for m in checkpoint.read_metrics(tmp_path / "run") if name in m and m["step"] == 6]
    assert found[name] == pytest.approx(expected.mean, rel=1e-6)
    assert found["standard_error"] == pytest.approx(expected.standard_error, rel=1e-5)
    for labels in (None, 1 - images.labels):  # type: ignore[operator]
        other = evaluate_likelihood(flow, images.images, labels, **options)
        assert other.mean != pytest.approx(expected.mean, rel=1e-6)


def test_of_equal_scores_the_first_is_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(*rest: Any, **options: Any) -> Likelihood:
        return dataclasses.replace(evaluate_likelihood(*rest, **options), mean=3.0)

    monkeypatch.setattr(scoring_module, "evaluate_likelihood", same)
    result = train(run_config(evaluate_every=3), splits(), tmp_path / "run")
    assert (result.best_step, result.best_score) == (3, 3.0)
    best = tmp_path / "run" / "checkpoints" / "step-3" / "model.safetensors"
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == best.read_bytes()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the work moves: a step takes 2 s, an evaluation 100, a sheet 1000, a checkpoint 10,000."""
    now = [50.0]

    class Clocked:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    for name, seconds in (("take_step", 2.0), ("evaluate", 100.0), ("draw_samples", 1000.0), ("save", 10000.0)):
        real = getattr(trainer_module.Trainer, name)

        def timed(self: Any, *rest: Any, real: Any = real, seconds: float = seconds) -> Any:
            now[0] += seconds
            return real(self, *rest)

        monkeypatch.setattr(trainer_module.Trainer, name, timed)
    monkeypatch.setattr(trainer_module, "time", Clocked)
    return now


@pytest.mark.parametrize("log_every", [1, 2, 5])
def test_the_rate_is_that_of_the_steps_alone(log_every: int, clock: list[float], tmp_path: Path) -> None:
    config = run_config(log_every=log_every, evaluate_every=3, sample_every=4, save_every=5)
    result = train(config, splits(), tmp_path / "run")
    lines = [m for m in checkpoint.read_metrics(tmp_path / "run") if "images_per_second" in m]
    assert [m["step"] for m in lines] == sorted({*range(log_every, 13, log_every), 12})
    assert [m["images_per_second"] for m in lines] == [pytest.approx(8 / 2)] * len(lines)
    assert result.seconds == clock[0] - 50.0 - 10000.0, "all but the last checkpoint, which holds it"


def test_a_resumed_run_goes_on_with_its_clock(clock: list[float], tmp_path: Path) -> None:
    config = run_config(evaluate_every=12, save_every=100)
    whole = train(config, splits(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, splits(), tmp_path / "parts", report=stop_at(5))
    clock[0] += 1e6  # the machine was used for something else
    parts = train(config, splits(), tmp_path / "parts", resume=True)
    assert whole.seconds == parts.seconds == 12 * 2.0 + 100.0
    for name in ("whole", "parts"):
        seconds = [m["seconds"] for m in checkpoint.read_metrics(tmp_path / name) if "seconds" in m]
        assert seconds == [2.0 * step for step in range(1, 13)]


def test_a_resumed_run_remembers_how_many_steps_in_a_row_did_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SKIPS_ALLOWED", 4)
    poison_batches(monkeypatch, lambda step: step >= 2)
    with pytest.raises(Interrupted, match="saved at step 4"):  # two of them
        train(run_config(), splits(), tmp_path / "run", report=stop_at(4))
    with pytest.raises(Diverged, match="no finite gradient in 4 steps in a row before step 6"):
        train(run_config(), splits(), tmp_path / "run", resume=True)


def test_mirrored_images_lose_their_labels_as_often_as_others() -> None:
    """What is random in a batch is drawn once for each purpose: flips, noise and dropped labels know nothing of each
    other."""
    count = 8000
    pixels = torch.tensor([0, 8], dtype=torch.uint8).view(1, 1, 1, 2).expand(count, 1, 1, 2)
    config = TrainingConfig(steps=1, batch_size=count, noise="uniform", label_drop=0.3)
    x, y = training_batch(
        pixels,
        torch.zeros(count).long(),
        5,
        config=config,
        condition=Classes(10),
        measure=config.measure(17),
        flip=True,
    )
    assert y is not None
    left, right = x[:, 0, 0].unbind(1)
    mirrored, dropped = (left > right).double(), (y == NULL_CLASS).double()
    u = ((left + 1) * 17 / 2) % 1  # of the first pixel
    for name, a, b in (
        ("flip and label", mirrored, dropped),
        ("flip and noise", mirrored, u),
        ("label and noise", dropped, u),
        ("the noise of two pixels", u, ((right + 1) * 17 / 2) % 1),
    ):
        correlation = float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])
        assert abs(correlation) < 5 / count**0.5, (name, correlation)
    assert float(mirrored.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(dropped.mean()) == pytest.approx(0.3, abs=0.03)
