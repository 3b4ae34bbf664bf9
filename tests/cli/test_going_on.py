"""A run that goes on: from other weights, with a word on their noise and a trace of them, or for more steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flow_cases import build
from small_runs import resume, train, write_images
from tarflow import checkpoint
from tarflow.cli import main
from tarflow.config import TrainingConfig
from tarflow.interop import to_official


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", 20)


def training(run: Path) -> TrainingConfig:
    found = checkpoint.read_config(run).training
    assert found is not None
    return found


def test_init_keeps_the_noise_of_its_weights_and_leaves_a_trace(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(photos, tmp_path / "uniform", "--noise", "uniform") == 0
    assert train(photos, tmp_path / "gaussian", "--noise-std", "0.3") == 0
    assert training(tmp_path / "gaussian").init_from == ""
    traces = set()
    for name in ("uniform", "gaussian"):
        assert train(photos, tmp_path / f"{name}-on", "--init", str(tmp_path / name)) == 0
        before, after = training(tmp_path / name), training(tmp_path / f"{name}-on")
        assert after.noise == before.noise and (name == "uniform" or after.noise_std == 0.3)
        assert after.init_from.startswith(f"{tmp_path / name} (")
        traces.add(after.init_from.partition(" (")[2])
        assert "starts from weights" not in capsys.readouterr().err
        assert resume(tmp_path / f"{name}-on") == 0 and training(tmp_path / f"{name}-on").init_from == after.init_from
    again = tmp_path / "uniform-on"
    assert resume(again, "--init", str(tmp_path / "uniform")) == 0, "the same command once more"
    capsys.readouterr()
    assert resume(again, "--init", str(tmp_path / "gaussian")) == 2
    assert f"the run in {again} started from {tmp_path / 'uniform'} (" in capsys.readouterr().err
    assert len(traces) == 2, "the weights, not only the name"
    other = ["--init", str(tmp_path / "uniform"), "--noise", "gaussian", "--noise-std", "0.05"]
    assert train(photos, tmp_path / "other", *other) == 0
    assert training(tmp_path / "other").noise == "gaussian"
    said = "starts from weights of uniform noise, and trains with gaussian noise of σ 0.05"
    assert said in capsys.readouterr().err


def test_an_official_checkpoint_says_its_noise_by_its_name(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow = build("unconditional", torch.float32, image_size=4, channels=1, width=64, head_dim=64)
    torch.save(to_official(flow), tmp_path / "some_model_2_64_2_1_0.07.pth")
    options = ["--init", str(tmp_path / "some_model_2_64_2_1_0.07.pth"), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main(["train", "--data", str(photos), "--batch-size", "4", "--sample-every", "0", *options]) == 0
    assert training(tmp_path / "run").noise_std == 0.07


def test_a_run_is_given_more_steps_and_keeps_those_it_has_taken(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(photos, run) == 0
    before = checkpoint.read_metrics(run)
    assert resume(run, "--steps", "8", "--save-every", "4") == 0
    said = "8 steps instead of 4; from here on the learning rate follows the schedule of 8"
    assert said in capsys.readouterr().err
    assert training(run).steps == 8 and checkpoint.latest_checkpoint(run) == run / "checkpoints" / "step-8"
    assert [entry for entry in checkpoint.read_metrics(run) if entry["step"] <= 4] == before
    assert resume(run, "--epochs", "6") == 0
    assert (training(run).steps, training(run).epochs) == (None, 6.0)
    config = (run / "config.json").read_text()
    assert resume(run, "--steps", "3") == 2
    assert "training.steps: the run in" in (said := capsys.readouterr().err) and "has taken" in said
    assert resume(run, "--steps", "40", "--lr", "1") == 2 and "training.lr" in capsys.readouterr().err
    assert (run / "config.json").read_text() == config, "a refusal changes nothing"
