"""kill -9 at any moment, inside a write too, costs nothing: the weights end up the same to the bit.

Five kills, by the script that `benchmarks/results/faults.json` has fifty of.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.killing import compare
from tarflow import checkpoint
from training_cases import assert_bitwise_equal, run_weights

ROOT = Path(__file__).resolve().parents[2]
KILLS = {"memory": 3, "mapped": 1, "streamed": 1}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the killer forks, and this system cannot")


def test_killed_five_times_and_resumed_is_bitwise_the_same(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    kills = [word for loader, count in KILLS.items() for word in (f"--{loader}", str(count))]
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.faults", *kills, "--keep", str(tmp_path), "--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(out.read_text())
    for loader, count in KILLS.items():
        whole, parts = tmp_path / f"{loader}-whole", tmp_path / f"{loader}-killed"
        assert_bitwise_equal(run_weights(whole), run_weights(parts))
        timeless = [
            [{k: v for k, v in m.items() if "second" not in k} for m in checkpoint.read_metrics(run)]
            for run in (whole, parts)
        ]
        assert timeless[0] == timeless[1] and len(timeless[0]) > report["loaders"][loader]["steps"]
        assert len(report["loaders"][loader]["deaths"]) == count
    assert report["equal"] and report["checkpoints_sound_after_each_kill"]
    assert not list(tmp_path.glob("*-killed/**/.*")), "left behind"

    deaths = [death for loader in report["loaders"].values() for death in loader["deaths"]]
    assert sum(report["fell"].values()) == len(deaths) == report["kills"] == 5
    written = {death["phase"] for death in deaths if death["kill"] == "in a write"}
    assert written and written <= {"opening", "checkpoint", "best weights", "pruning", "samples"}
    assert any(death["resumed_from"] for death in deaths)
    differences_are_found(tmp_path / "memory-whole", tmp_path / "memory-killed")


def differences_are_found(whole: Path, other: Path) -> None:
    """The comparison itself can fail: another weight, another line of metrics, something left behind."""
    assert all(compare(whole, other).values())
    latest = checkpoint.latest_checkpoint(other)
    state = checkpoint.load_state(latest)
    next(iter(state["flow"].values())).view(-1)[0] += 1e-3
    torch.save(state, latest / checkpoint.STATE_FILE)
    checkpoint.append_metrics(other, {"step": 1})
    (other / ".left").touch()
    assert {name for name, same in compare(whole, other).items() if not same} == {"last weights", "metrics", "files"}
