"""The training benchmark, on a tiny model beside the stand-in for the official code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmark_cases import STAND_INS
from benchmarks import training, training_sides
from benchmarks.training_sides import Job
from tarflow.config import TarFlowConfig

ROOT = Path(__file__).resolve().parents[2]

TINY = ["--image-size", "8", "--width", "64", "--blocks", "2", "--layers", "1", "--classes", "3", "--batch", "4"]


def tiny_job(clone: Path = STAND_INS) -> Job:
    model = TarFlowConfig(
        image_size=8, channels=3, patch_size=2, width=64, layers=(1, 1), num_classes=3, log_scale_bound=None
    )
    return Job(clone, model, 4, torch.device("cpu"), False)


def test_measures_both_sides_and_says_how_far_they_are_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(training, "peak_memory_apart", lambda argv, name: asked.append(name) or 12.5)
    out = tmp_path / "result.json"
    rows = ["ours", "ours, as trained", "ours, 2 micro-batches", "ours, layers recomputed"]
    command = ["--official", str(STAND_INS), "--out", str(out), *TINY, "--rounds", "3", "--rows", *rows]
    assert training.main(command) == 0
    result = json.loads(out.read_text())
    assert str(STAND_INS) not in out.read_text() and str(tmp_path) not in out.read_text()
    assert result["command"].startswith("python -m benchmarks.training --official DIR --image-size 8")
    assert result["disagreement"]["loss"] < 1e-5 and result["disagreement"]["gradient"] < 1e-5
    assert list(result["rows"]) == ["official", *rows] == asked
    assert result["rows"]["official"]["rounds"] == 12 and result["rows"]["ours"]["rounds"] == 3
    for row in result["rows"].values():
        assert 0 < row["min"] <= row["median"] and row["peak_memory_mb"] == 12.5
        assert row["share_of_matmul_rate"] == pytest.approx(
            result["gflop_per_step"] / row["min"] / result["matmul_gflops"]["best"]
        )
    assert result["data"]["seconds"] > 0
    table = capsys.readouterr().out
    assert all(name in table for name in result["rows"])


def test_time_runs_out_after_two_rounds() -> None:
    job = tiny_job()
    pair = training.time_pair(job, training.build(job, "official"), "ours", 5, until=0.0)
    assert (len(pair["official"]), len(pair["ours"]), len(pair["rates"])) == (2, 2, 4)


def test_refuses_to_time_what_computes_something_else(tmp_path: Path) -> None:
    source = (STAND_INS / "transformer_flow.py").read_text()
    wrong = source.replace("(x - shift) * (-log_scale)", "(x - 1.001 * shift) * (-log_scale)")
    assert wrong != source
    (tmp_path / "transformer_flow.py").write_text(wrong)
    with pytest.raises(ValueError, match="disagree"):
        training.measure(tiny_job(tmp_path), ["ours"], 1, 1.0, [])


def test_rows_differ_from_the_official_step_in_what_they_name() -> None:
    fields = training_sides.ROWS
    assert fields["ours"] == {}
    assert all(len(value) > 0 for name, value in fields.items() if name != "ours")


def test_counts_the_products_of_the_step() -> None:
    """By torch's own counter, which does not know the CPU's attention."""
    from torch.utils.flop_counter import FlopCounterMode

    job = tiny_job()
    step = training_sides.build(job, "ours, nothing recomputed")
    with FlopCounterMode(display=False) as counter:
        step()
    count, width, layers = 15, 64, 2
    attention = sum(4 * width * seen for seen in range(1, count + 1)) * layers  # q·k and p·v of every query
    assert job.flops == counter.get_total_flops() + job.batch * 3 * attention


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(tmp_path: Path) -> None:
    """Also the proof that it runs from source, with torch and nothing else to import."""
    for name in ("pydantic", "tyro", "safetensors", "rich", "sklearn", "pyarrow", "PIL"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not on this machine')")
    large = [
        *TINY,
        "--image-size",
        "32",
        "--batch",
        "32",
    ]  # 10 widths of 255 tokens in 4 layers' worth: 42 MB, and the rest
    command = [sys.executable, "-m", "benchmarks.training", "--official", str(STAND_INS), *large, "--memory-of", "ours"]
    path = os.pathsep.join([str(tmp_path), str(ROOT), str(ROOT / "src")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=True)
    assert 40 < float(done.stdout) < 400


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--official", "nowhere"], "nowhere: no such directory"),
        (["--official", str(STAND_INS), "--batch", "6"], "accumulate: expected a divisor of batch_size 6"),
        (["--official", str(STAND_INS), "--width", "100"], "width: expected a multiple of head_dim 64"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert training.main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out
