"""The command line under the real `torchrun`: trains, stops by SIGTERM, resumes on other numbers, names who died."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tarflow import checkpoint
from tarflow.cli import main

SOURCE = Path(__file__).resolve().parents[2] / "src"
RECIPE = """
[model]
patch_size = 4
width = 64
layers = [1, 1]

[data]
source = "digits"

[training]
steps = 100000
batch_size = 12
log_every = 1
save_every = 5
evaluate_every = 50
evaluate_images = 11
sample_every = 0
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.name != "posix" or not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="the jobs are ended by signals, and talk with gloo",
    ),
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


def torchrun(size: int, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    command += ["-m", "tarflow", *map(str, arguments), "--device", "cpu"]
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def at_step(job: subprocess.Popen[str], run: Path, step: int) -> None:
    """Wait until a job has written a line of metrics of that step."""
    end = time.monotonic() + 150
    while time.monotonic() < end and job.poll() is None:
        with_lines = (run / checkpoint.METRICS_FILE).exists()
        if with_lines and any(m["step"] >= step for m in checkpoint.read_metrics(run)):
            return
        time.sleep(0.05)
    job.kill()
    pytest.fail(f"step {step} was not reached: {job.communicate()[1]}")


def children(pid: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Processes that `pid` started, with their environments."""
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and f"PPid:\t{pid}\n" in (folder / "status").read_text():
                pairs = (folder / "environ").read_text().split("\0")
                yield int(folder.name), dict(pair.partition("=")[::2] for pair in pairs if pair)
        except OSError:
            continue


def ours(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if line.startswith("tarflow: ")]


def test_a_job_is_stopped_resumed_by_others_and_names_the_rank_that_died(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = torchrun(2, "train", "--recipe", recipe, "--out", run, "--strategy", "fsdp")
    at_step(job, run, 7)
    job.send_signal(signal.SIGTERM)
    _, stderr = job.communicate(timeout=60)
    (said,) = ours(stderr)
    latest = checkpoint.latest_checkpoint(run)
    assert latest is not None
    stopped = int(latest.name.removeprefix("step-"))
    assert stopped >= 7 and said == f"tarflow: SIGTERM: saved at step {stopped}; continue with --resume"
    assert "of 2 processes (fsdp)" in stderr

    job = torchrun(3, "train", "--out", run, "--resume", "--strategy", "ddp")
    at_step(job, run, stopped + 12)
    if not Path("/proc").is_dir():  # how the ranks are told apart
        job.kill()
        pytest.skip("no /proc")
    (victim,) = (pid for pid, environment in children(job.pid) if environment.get("RANK") == "1")
    os.kill(victim, signal.SIGKILL)
    _, stderr = job.communicate(timeout=90)
    assert job.returncode == 1
    said = ours(stderr)[-1]
    assert "lost the connection" in said and said.endswith("go on from the last checkpoint with --resume")
    cause = stderr.partition("Root Cause")[2]  # of torchrun's own report
    assert re.search(r"rank\s+: 1 \(", cause) and re.search(r"exitcode\s+: -9 ", cause), stderr
    assert len(ours(stderr)) == 1, stderr
    assert stderr.count("Traceback (most recent call last)") == 1, "torchrun's own; who survives leaves in order"

    latest = checkpoint.latest_checkpoint(run)
    assert latest is not None and int(latest.name.removeprefix("step-")) >= stopped + 5
    config = checkpoint.read_config(run)
    assert config.training is not None and config.training.strategy == "ddp"
    assert main(["sample", str(latest), "-n", "2", "--out", str(tmp_path / "sheet.png"), "--device", "cpu"]) == 0


def step_of(run: Path) -> int:
    latest = checkpoint.latest_checkpoint(run)
    return 0 if latest is None else int(latest.name.removeprefix("step-"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="how the processes are found")
def test_a_job_whose_processes_are_all_told_to_stop_or_killed_or_left_behind(recipe: Path, tmp_path: Path) -> None:
    """As Slurm and Kubernetes stop a job: each process gets the signal, and each worker its launcher's as well."""
    run = tmp_path / "run"
    job = torchrun(2, "train", "--recipe", recipe, "--out", run)
    at_step(job, run, 3)
    for pid, _ in list(children(job.pid)):
        os.kill(pid, signal.SIGTERM)
    job.send_signal(signal.SIGTERM)
    _, stderr = job.communicate(timeout=60)
    saved = step_of(run)
    assert ours(stderr) == [f"tarflow: SIGTERM: saved at step {saved}; continue with --resume"]

    job = torchrun(3, "train", "--out", run, "--resume")
    at_step(job, run, saved + 7)
    workers = [pid for pid, _ in children(job.pid)]
    for pid in (job.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    job.communicate(timeout=60)
    saved = step_of(run)
    assert (run / ".lock").exists(), "stale"

    job = torchrun(3, "train", "--out", run, "--resume")  # whose ranks all find the stale lock
    at_step(job, run, saved + 7)
    job.kill()
    _, stderr = job.communicate(timeout=60)  # which the workers write to, too: all of them have left
    saved = step_of(run)
    assert ours(stderr) == [f"tarflow: SIGHUP: saved at step {saved}; continue with --resume"]
