"""Interleaved timings and the rates of the machine."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.timing import Budget, interleave, summary, timed
from tarflow.planning import devices as rates

CPU = torch.device("cpu")


def test_sides_take_turns() -> None:
    calls: list[str] = []
    sides = {"ours": lambda: calls.append("ours"), "theirs": lambda: calls.append("theirs")}
    seconds = interleave(sides, 3, CPU, Budget())
    assert calls == ["ours", "theirs"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"ours": 3, "theirs": 3}


def test_a_spent_budget_still_allows_one_round() -> None:
    budget = Budget(minutes=1e-9)
    assert not budget.allows()
    assert len(interleave({"ours": lambda: None}, 5, CPU, budget)["ours"]) == 1
    assert Budget(minutes=1).allows(50)
    assert not Budget(minutes=1).allows(70)


def test_a_timing_is_that_of_the_call() -> None:
    result, seconds = timed(lambda: time.sleep(0.05) or 7, CPU)
    assert result == 7
    assert 0.05 <= seconds < 5


def test_a_summary_keeps_every_timing_and_scales_all_of_them() -> None:
    assert summary([3.0, 1.0, 2.5], scale=2.0) == {
        "seconds": [6.0, 2.0, 5.0],
        "best": 2.0,
        "median": 5.0,
        "spread": 3.0,
    }


def test_best_seconds_is_per_call() -> None:
    assert 0.002 <= rates.best_seconds(lambda: time.sleep(0.002), CPU, seconds=0.02) < 0.1


def test_rates_are_work_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[torch.Tensor] = []

    def half_a_second(run, device, *, seconds):  # type: ignore[no-untyped-def]
        ran.append(run())
        return 0.5

    monkeypatch.setattr(rates, "best_seconds", half_a_second)
    assert rates.matmul_rate(2, 3, 5, torch.float32, CPU) == 2 * 2 * 3 * 5 / 0.5
    assert ran[-1].shape == (2, 5)
    assert rates.read_rate(400, CPU) == 400 / 0.5
    assert ran[-1] == 100  # the whole buffer, of ones, was read
