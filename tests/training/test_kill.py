"""kill -9 at ten random moments, half of them inside a write, costs nothing: the weights end up the same to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tarflow import checkpoint
from tarflow.storage import remove_leftovers
from training_cases import assert_bitwise_equal, run_weights

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killer forks, and this system cannot")
def test_killed_ten_times_and_resumed_is_bitwise_the_same(tmp_path: Path) -> None:
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(TESTS / "training" / "killer.py"), str(tmp_path / "killed"), "0", "10"]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=True)
    report = json.loads(result.stdout)
    assert report.get("error") is None, report
    assert report["status"] == 0 and len(report["deaths"]) == 10, report
    assert sum(where == "write" for _, where in report["deaths"]) == 5, report
    assert len({step for step, _ in report["deaths"]}) > 3, f"the deaths are not spread over the run: {report}"
    assert_bitwise_equal(run_weights(tmp_path / "whole"), run_weights(tmp_path / "killed"))
    timeless = [
        [{k: v for k, v in m.items() if "second" not in k} for m in checkpoint.read_metrics(tmp_path / name)]
        for name in ("whole", "killed")
    ]
    assert timeless[0] == timeless[1]
    leftovers = set((tmp_path / "killed").rglob(".*"))
    remove_leftovers(tmp_path / "killed")
    assert not leftovers, f"left behind: {leftovers}"
