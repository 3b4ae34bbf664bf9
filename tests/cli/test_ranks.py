"""What the ranks of a job print: one of them what all know, and each what it alone does."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tarflow import cli
from tarflow.config import ConfigError
from tarflow.ranks import FirstRankFailed, RankLost
from tarflow.training.interrupt import Interrupted
from tarflow.training.trainer import Diverged

CASES: list[tuple[Callable[[], Exception], int, list[str]]] = [  # what rank 0 prints, and then rank 1
    (
        lambda: Interrupted(signal.SIGTERM, 7),
        128 + signal.SIGTERM,
        ["tarflow: SIGTERM: saved at step 7; continue with --resume", ""],
    ),
    (lambda: Diverged("no"), 2, ["tarflow: error: rank 0 of 2: no", ""]),
    (lambda: FirstRankFailed("OSError: full"), 2, ["", ""]),
    (lambda: ConfigError("x: no"), 2, ["tarflow: error: rank 0 of 2: x: no", "tarflow: error: rank 1 of 2: x: no"]),
    (
        lambda: RankLost("a rank is gone"),
        1,
        [
            "tarflow: error: rank 0 of 2: a rank is gone; the launcher's report says which; "
            "go on from the last checkpoint with --resume",
            "",
        ],
    ),
]


@pytest.mark.parametrize(("make", "code", "printed"), CASES)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_a_rank_prints(
    rank: int,
    make: Callable[[], Exception],
    code: int,
    printed: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli._explain(make()) == code
    assert capsys.readouterr().err.strip() == printed[rank]


def test_one_process_has_no_number(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert cli._explain(ConfigError("x: no")) == 2
    assert capsys.readouterr().err == "tarflow: error: x: no\n"
