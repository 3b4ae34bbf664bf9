"""Long runs: a curve over processor seconds, and the same weights whether or not something ended them on their way."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import long_run
from tarflow import TarFlow

FIELDS = ["layers=[1, 1]", "patch_size=4", "batch_size=4"]


def command(folder: Path, *more: str) -> list[str]:
    folder.mkdir(exist_ok=True)
    run = ["--run", str(folder / "run"), "--out", str(folder / "curve.json"), "--images", "8", "--minutes", "1e-9"]
    return ["--set", "digits", "--variant", "muon 8e-3+ema 0.99", *run, *more, "--fields", *FIELDS]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_run, "POINTS", 4)
    monkeypatch.setattr(long_run, "PILOT", 1)


class Interrupting(long_run.Curve):
    """A signal comes after the third of eight steps."""

    def __call__(self, metrics: dict[str, Any]) -> None:
        super().__call__(metrics)
        if metrics["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_an_interrupted_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_run, "POINTS", 8)
    assert long_run.main(command(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(long_run, "Curve", Interrupting)
        assert long_run.main(command(tmp_path / "parts")) == 130
    assert "saved at step 3" in capsys.readouterr().err
    begun = json.loads((tmp_path / "parts" / "curve.json").read_text())
    assert begun["saved"]["step"] == 3 and [point["step"] for point in begun["curve"]] == [1, 2, 3]
    assert long_run.main(command(tmp_path / "parts")) == 0
    whole, parts = (json.loads((tmp_path / name / "curve.json").read_text()) for name in ("whole", "parts"))
    assert [point["step"] for point in parts["curve"]] == list(range(1, 9))
    assert [p["bits_per_dim"] for p in parts["curve"]] == [p["bits_per_dim"] for p in whole["curve"]]
    assert parts["curve"][:3] == begun["curve"]
    seconds = [point["seconds"] for point in parts["curve"]]
    assert seconds == sorted(seconds) and seconds[0] > 0
    last = [TarFlow.from_pretrained(tmp_path / name / "run" / "checkpoints" / "step-8") for name in ("whole", "parts")]
    for one, other in zip(*(flow.state_dict().values() for flow in last), strict=True):
        assert torch.equal(one, other)
    assert str(tmp_path) not in (tmp_path / "parts" / "curve.json").read_text()


def test_seconds_of_a_killed_run_are_counted_from_what_the_file_knows(tmp_path: Path) -> None:
    points = [{"step": 10, "seconds": 5.0}, {"step": 20, "seconds": 11.0}]
    known = {"curve": points, "saved": {"step": 20, "seconds": 11.0}, "seconds_per_step": 0.5}
    curve = long_run.Curve(known, tmp_path / "curve.json", torch.device("cpu"))
    curve.begin(14)  # the checkpoint of step 20 was lost
    assert curve.seconds == 5.0 + 4 * 0.5 and known["curve"] == points[:1]
    curve.begin(30)
    assert curve.seconds == 11.0 + 10 * 0.5


def test_scoring_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((1.0, 4.0, 4.0, 100.0, 102.0, 102.0))
    monkeypatch.setattr(long_run, "now", lambda device: next(times))
    known = {"curve": [], "saved": {"step": 0, "seconds": 0.0}, "seconds_per_step": 0.5}
    curve = long_run.Curve(known, tmp_path / "curve.json", torch.device("cpu"))
    curve({"step": 1, "total": 3})  # ends at 1
    curve({"step": 2, "total": 3})  # ends at 4
    curve({"step": 2, "held_out_bits_per_dim": 3.0, "standard_error": 0.1})  # ends at 100
    curve({"step": 3, "total": 3})
    assert curve.seconds == 0.5 + 3.0 + 2.0
    assert [point["seconds"] for point in known["curve"]] == [3.5]


def test_what_is_refused_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--minutes", "1e-9", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "curve.json")]
    for words, named in (
        (["--set", "digits", "--variant", "qk norm"], "qk norm"),
        (["--variant", "lr 2e-3"], "--set"),
        (["--recipe", "moon"], "moon"),
        (["--recipe", "digits", "--fields", "width:3"], "width:3"),
        (["--recipe", "digits", "--fields", "wide=3"], "wide"),
        (["--recipe", "digits", "--fields", "width=63"], "width"),
    ):
        assert long_run.main([*words, *run]) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_minutes_are_steps_and_another_number_of_them_is_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(long_run, "pace", lambda *_: 0.5)
    recipe = ["--recipe", "digits", "--images", "8", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "c.json")]
    recipe += ["--fields", *FIELDS]
    assert long_run.main([*recipe, "--minutes", "0.1"]) == 0
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["steps"] == 12 and result["config"]["model"]["layers"] == [1, 1]
    assert [point["step"] for point in result["curve"]] == [3, 6, 9, 12]
    assert long_run.main([*recipe, "--minutes", "1"]) == 2
    assert "minutes: the run there has 0.1, got 1.0" in capsys.readouterr().err
