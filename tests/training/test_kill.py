"""kill -9 at any moment, inside a write too, costs nothing: the weights end up the same to the bit.

Five kills, by the script that `benchmarks/results/faults.json` has fifty of.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import faults, killing
from benchmarks.killing import campaign, compare, warm_up, write_images
from tarflow import checkpoint
from training_cases import assert_bitwise_equal, run_weights

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the killer forks, and this system cannot")


@pytest.mark.parametrize(
    ("loader", "kills"), [("memory", 3), ("mapped", 1), pytest.param("stored", 1, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_is_bitwise_the_same(loader: str, kills: int, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    threads = torch.get_num_threads()
    warm_up(tmp_path)
    torch.set_num_threads(threads)
    report = campaign(tmp_path, loader, kills, seed=0)
    assert all(report["equal"].values()) and report["sound"], report
    whole, parts = tmp_path / f"{loader}-whole", tmp_path / f"{loader}-killed"
    assert_bitwise_equal(run_weights(whole), run_weights(parts))
    timeless = [
        [{k: v for k, v in m.items() if "second" not in k} for m in checkpoint.read_metrics(run)]
        for run in (whole, parts)
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) > report["steps"]
    assert not list(parts.rglob(".*")), "left behind"

    deaths = report["deaths"]
    assert sum(report["fell"].values()) == len(deaths) == kills
    written = {death["phase"] for death in deaths if death["kill"] == "in a write"}
    assert written <= {"opening", "checkpoint", "best weights", "pruning", "samples"}
    if loader == "memory":
        assert written and any(death["resumed_from"] for death in deaths)
        differences_are_found(whole, parts)


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


def test_the_script_says_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of `benchmarks/results/faults.json`, without the kills."""
    found = {"fell": {"step": 2}, "equal": {"metrics": True}, "sound": True, "steps": 9, "kills": 2, "deaths": []}
    monkeypatch.setattr(killing, "warm_up", lambda place: None)
    monkeypatch.setattr(killing, "campaign", lambda place, loader, count, seed: found)
    out = tmp_path / "faults.json"
    monkeypatch.setattr(sys, "argv", ["faults", "--memory", "2", "--stored", "2", "--out", str(out)])
    assert faults.main() == 0
    report = json.loads(out.read_text())
    assert (report["kills"], report["fell"], report["equal"]) == (4, {"step": 4}, True)
    assert report["command"] == "python -m benchmarks.faults --memory 2 --stored 2 --seed 0"
    monkeypatch.setattr(sys, "argv", ["faults", "--mapped", "2", "--out", str(out)])
    assert faults.main() == 0
    assert json.loads(out.read_text())["kills"] == 6, "what it had of the other loaders is kept"
    for broken in ({"equal": {"metrics": False}}, {"sound": False}):
        monkeypatch.setattr(killing, "campaign", lambda *arguments, broken=broken: found | broken)
        assert faults.main() == 1
    monkeypatch.setattr(sys, "argv", ["faults"])
    with pytest.raises(SystemExit):
        faults.main()
