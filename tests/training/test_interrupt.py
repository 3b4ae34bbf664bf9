"""Which signals end a training, once; what a repetition does; and what becomes of the handlers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked import exit_code, fork, wait_for
from tarflow import checkpoint
from tarflow.training import interrupt
from tarflow.training.interrupt import Interrupted, Stop, collect_signals
from tarflow.training.trainer import train
from training_cases import run_config, splits

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1] if os.name == "posix" else []
SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in ENDING}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(*signums: int) -> None:
    for signum in signums:
        signal.raise_signal(signal.Signals(signum))


@pytest.mark.parametrize("first", ENDING)
@pytest.mark.parametrize("second", ENDING)
def test_a_repetition_ends_nothing(first: int, second: int) -> None:
    with collect_signals() as stop:
        assert stop() == 0
        send(first, second, second)
        assert stop() == first, "the first one is what is answered"
    assert all(not isinstance(signal.getsignal(signum), interrupt._Handler) for signum in ENDING)


def test_a_person_insists_later_and_only_by_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    with collect_signals() as stop:
        send(signal.SIGTERM, signal.SIGINT)
        monkeypatch.setattr(interrupt, "WAVE_SECONDS", 0.0)
        send(signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop() == signal.SIGTERM


def test_what_others_do_with_hangups_and_user_signals_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup` ignores the one; clusters' own tools answer the other."""
    seen: list[int] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda signum, frame: seen.append(signum))
    with collect_signals() as stop:
        send(signal.SIGHUP, signal.SIGUSR1)
        assert stop() == 0 and seen == [signal.SIGUSR1]


def test_a_program_waits_the_wave_out_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal came to another rank: here it comes when the training was left already."""
    original = signal.signal(signal.SIGTERM, lambda signum, frame: seen.append(signum))
    seen: list[int] = []

    def left() -> None:
        with pytest.raises(Interrupted), collect_signals():
            raise Interrupted(signal.SIGTERM, 3)

    left()
    send(signal.SIGTERM)
    assert seen == [signal.SIGTERM]
    monkeypatch.setattr(interrupt, "_program_ends", True)
    left()
    send(signal.SIGTERM)
    assert seen == [signal.SIGTERM], "of the same wave"
    monkeypatch.setattr(interrupt, "WAVE_SECONDS", 0.0)
    send(signal.SIGTERM)
    assert seen == [signal.SIGTERM] * 2
    signal.signal(signal.SIGTERM, original)


def test_the_end_of_a_launcher_is_a_hangup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Stop()
    monkeypatch.setenv("WORLD_SIZE", "1")
    of_a_job = Stop()
    assert alone() == of_a_job() == 0
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert alone() == 0, "may outlive the shell that started it"
    assert of_a_job() == signal.SIGHUP


@pytest.mark.parametrize("signum", ENDING)
def test_a_wave_in_the_middle_of_saving_saves(signum: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, save = tmp_path / "run", checkpoint.save_checkpoint

    def in_a_wave(*arguments: object) -> Path:
        send(signum)
        return save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save_checkpoint", in_a_wave)
    config = run_config(steps=6, save_every=100, evaluate_every=100)
    with pytest.raises(Interrupted) as caught:
        train(config, splits(), run, report=lambda metrics: send(signum) if metrics["step"] == 2 else None)
    assert (caught.value.signum, caught.value.step) == (signum, 2)
    latest = checkpoint.latest_checkpoint(run)
    assert latest is not None and latest.name == "step-2" and checkpoint.damage(latest) is None


@pytest.mark.slow
def test_the_program_leaves_with_the_code_of_the_first_signal(tmp_path: Path) -> None:
    """All of it: as a program, under a wave that goes on until it has ended."""
    command = [sys.executable, "-m", "tarflow", "train", "--recipe", "digits", "--out", str(tmp_path / "run")]
    command += ["--width", "64", "--layers", "1", "--sample-every", "0", "--device", "cpu"]
    path = os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.02)
        while job.poll() is None and time.monotonic() < until:
            job.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        _, stderr = job.communicate(timeout=10)
    finally:
        job.kill()
    assert job.returncode == 128 + signal.SIGTERM
    latest = checkpoint.latest_checkpoint(tmp_path / "run")
    assert latest is not None
    step = latest.name.removeprefix("step-")
    assert stderr.splitlines()[-1] == f"tarflow: SIGTERM: saved at step {step}; continue with --resume"


def test_ctrl_c_much_later_ends_a_training_that_does_not_leave(tmp_path: Path) -> None:
    reached = tmp_path / "reached"

    def work() -> int:
        interrupt.WAVE_SECONDS = 0.2

        def hang(metrics: object) -> None:
            reached.touch()
            time.sleep(30)

        try:
            train(run_config(), splits(), tmp_path / "run", report=hang)
        except KeyboardInterrupt:
            return 77
        return 1

    pid = fork(work)
    wait_for(reached, pid)
    for _ in range(3):  # the first two of one wave
        os.kill(pid, signal.SIGINT)
        time.sleep(0.15)
    assert exit_code(pid, seconds=10) == 77
