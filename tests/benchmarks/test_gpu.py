"""The GPU's script, which CI can only run in small and on a CPU: that it still runs, and what it says and keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_carry


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no CUDA device here" in capsys.readouterr().err


def test_a_part_that_fails_costs_itself_alone_and_one_that_is_run_again_replaces_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def part(name: str, found: Any) -> Any:
        def run(setting: gpu.Setting, seconds: float) -> Any:
            asked.append((name, seconds))
            if isinstance(found, Exception):
                raise found
            return dict(found)

        return run, 10.0

    parts = {
        "missing": part("missing", gpu.Missing("gpu-carry/data: training images")),
        "broken": part("broken", RuntimeError("not done after 10 s")),
        "wrong": part("wrong", ValueError("no such thing")),
        "good": part("good", {"figure": 7}),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    out = tmp_path / "results" / "gpu.json"
    command = ["--device", "cpu", "--quick", "--out", str(out), "--minutes", "4", "--parts"]
    assert gpu.main([*command, *parts]) == 1
    found = json.loads(out.read_text())["parts"]
    assert found["missing"]["missing"] == "gpu-carry/data: training images"
    assert found["broken"]["error"] == "not done after 10 s" and found["wrong"]["error"] == "ValueError: no such thing"
    assert found["good"]["figure"] == 7 and asked == [(name, 5.0) for name in parts]
    assert all(str(tmp_path) not in value["command"] for value in found.values())
    parts["broken"] = part("broken", {"figure": 8})
    assert gpu.main([*command, "broken"]) == 0
    again = json.loads(out.read_text())["parts"]
    assert again["broken"]["figure"] == 8 and again["good"] == found["good"]
    assert "--- good" in capsys.readouterr().out


def test_what_it_starts_is_stopped_in_time(tmp_path: Path) -> None:
    setting = gpu.Setting("cpu", True, tmp_path, tmp_path, tmp_path)
    with pytest.raises(RuntimeError, match=r"not done after 2 s; begun"):
        gpu.run(setting, 2, "-c", "print('begun', flush=True); import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="exit code 3; so far"):
        gpu.run(setting, 30, "-c", "print('so far'); raise SystemExit(3)")
    (tmp_path / "wheels").mkdir()
    assert (
        gpu.run(setting, 30, "-c", "import tarflow, benchmarks, os; print(os.environ['WORD'])", WORD="hear") == "hear\n"
    )


def test_what_is_named_and_not_there_is_not_carried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_carry.main(["--official", str(tmp_path), "--carry", str(tmp_path / "carry")]) == 2
    assert "transformer_flow.py: no such file" in capsys.readouterr().err
    assert not (tmp_path / "carry").exists()


@pytest.mark.slow
def test_all_of_it_runs_in_small(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(out), "--minutes", "40"]) == 0
    parts = json.loads(out.read_text())["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert parts["tests"]["passed"] > 50 and not parts["tests"]["failed"]
    for name in ("sampling bf16", "sampling float32"):
        assert {case["batch"] for case in parts[name]["cases"]} == {1, 2} and not parts[name]["disagreements"]
    assert parts["training"]["rows"]["ours"]["share_of_matmul_rate"] > 0
    assert parts["cifar10"]["uniform"]["held_out"] and parts["cifar10"]["precision"]["bits_per_dim_error"]
