"""Shares, and what is believed of the environment; what the ranks say to each other is in training/test_ranks.py."""

from __future__ import annotations

import itertools

import pytest
import torch

from tarflow.config import ConfigError
from tarflow.ranks import ALONE, Ranks

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(("size", "count"), [*itertools.product((1, 2, 3, 7), (0, 1, 2, 6, 11, 100))])
def test_each_is_in_one_share_and_shares_differ_by_one_at_most(size: int, count: int) -> None:
    shares = [list(range(count)[Ranks(rank, size).share(count)]) for rank in range(size)]
    assert list(itertools.chain(*shares)) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_environment_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment() == ALONE
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(5, 8, 1, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RANK", "8"), ("RANK", "-1"), ("WORLD_SIZE", "many"), ("LOCAL_RANK", "4"), ("LOCAL_WORLD_SIZE", "9")],
)
def test_an_environment_that_cannot_be_is_refused_by_name(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, right in TORCHRUN.items():
        monkeypatch.setenv(key, right)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name):
        Ranks.from_environment()
    monkeypatch.delenv("RANK")
    with pytest.raises(ConfigError, match="RANK: expected a number"):
        Ranks.from_environment()


def test_one_process_gives_back_what_it_was_given() -> None:
    values = [torch.tensor(2.0), torch.ones(2, 3)]
    assert all(a is b for a, b in zip(ALONE.sum(values), values, strict=True))
    assert ALONE.largest(3) == 3 and ALONE.gather("a") == ["a"] and ALONE.on_first(lambda: 7) == 7
    ALONE.check_same("anything", 1)
    with pytest.raises(ZeroDivisionError):
        ALONE.on_first(lambda: 1 // 0)
    assert not torch.distributed.is_initialized()
