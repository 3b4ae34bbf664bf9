"""What is shown while a model trains, of whose steps most report no more than their number."""

from __future__ import annotations

import io
import re

import pytest

from tarflow.cli import progress as progress_module
from tarflow.cli.progress import Progress


def test_steps_without_metrics_show_the_last_that_were_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(now)))
    with Progress() as progress:
        progress.report({"step": 1, "total": 4})
        progress.report({"step": 2, "total": 4, "loss": 1.25, "bits_per_dim": 3.5, "images_per_second": 7.0})
        progress.report({"step": 3, "total": 4})
        progress.report({"step": 4, "held_out_bits_per_dim": 3.25, "standard_error": 0.1})
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert [line.split("  ")[0] for line in lines] == [
        "training 1/4",
        "training 2/4",
        "training 3/4",
        "step 4: held out bits per dim 3.2500",
    ]
    assert "loss" not in lines[0]
    assert "loss 1.250  3.500 bits/dim  7 images/s" in lines[1]
    assert "loss 1.250  3.500 bits/dim  7 images/s" in lines[2]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


class Terminal(io.StringIO):
    """A terminal in memory."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


STAGES = ("loading", "scoring", "scoring_held_out", "sampling", "checking")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_after_a_second_how_long_it_will_take(
    stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    unit = 10**6 if stage == "checking" else 1
    with Progress() as progress:
        for done in range(1, 20):
            clock.now = 0.8 * done
            getattr(progress, stage)(done * unit, 10_000 * unit)
    lines = capsys.readouterr().err.splitlines()
    first = 3 if stage == "loading" else 2  # of which the first report is the beginning
    assert [f" {first}/10000" in lines[0], f" {first + 13}/10000" in lines[1]] == [True, True] and len(lines) == 2
    assert all(line.endswith("2 h 13 min left") for line in lines), lines  # 8,000 seconds


def test_what_ends_at_once_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock(monkeypatch)
    with Progress() as progress:
        for done in range(1, 10):
            clock.now = 0.1 * done
            progress.scoring(done, 9)
    assert capsys.readouterr().err == ""


def test_a_second_round_of_a_stage_counts_from_its_own_beginning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress() as progress:
        for setting in range(2):
            for done in (1, 2):
                clock.now = 100 * setting + (50 if setting else 5) * done
                progress.sampling(done, 2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.rpartition("  ")[2] for line in lines if "1/2" in line] == ["5 s left", "2 min 20 s left"]


def test_a_resumed_training_says_from_where_and_counts_only_its_own_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with Progress() as progress:
        clock.now = 500.0  # of reading
        for step in range(726, 729):
            clock.now += 20
            progress.report({"step": step, "total": 1000})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "resumed: from step 725"
    assert lines[1:] == ["training 727/1000  1 h 31 min left", "training 728/1000  1 h 30 min left"]


def test_a_training_from_the_start_is_not_called_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.report({"step": 1, "total": 1000})
    assert "resumed" not in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off_at_the_margin_of_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, terminal = Clock(monkeypatch), Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    for name, value in {"TERM": "xterm", "COLUMNS": str(width), "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    metrics = {"loss": -123.456, "noisy_bits_per_dim": 12.345, "images_per_second": 12_345.0}
    with Progress() as progress:
        for step in (1, 99_000, 99_001):
            clock.now += 10_000
            progress.report({"step": step, "total": 123_456} | metrics)
            progress.bar.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert lines and not [line for line in lines if "…" in line or len(line.rstrip()) > width]
    last = next(line for line in reversed(lines) if "99001/123456" in line)
    assert "left" in last and ("bits/dim" in last) == (width >= 80)
    assert width < 120 or ("━" in last and "12345 images/s" in last)


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, terminal = Clock(monkeypatch), Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    with Progress() as progress:
        for done in (1, 2, 3):
            clock.now = 2.0 * done
            progress.scoring(done, 3)
    assert terminal.getvalue().splitlines() == ["scoring 1/3 passes  4 s left"]
