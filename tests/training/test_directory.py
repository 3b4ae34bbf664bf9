"""A run writes to its own directory alone, and goes on from its own checkpoints alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tarflow import checkpoint, locks
from tarflow.training.trainer import train
from training_cases import assert_bitwise_equal, digest_again, run_config, run_weights, splits

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows moves no directory in which a file is open")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def identity(path: Path) -> str | None:
    training = checkpoint.read_config(path).training
    assert training is not None
    return training.run


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another seed, with checkpoints at steps 4 and 8, and the best and last ones."""
    run = tmp_path_factory.mktemp("other") / "run"
    train(run_config(seed=1), splits(), run)
    return run


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {  # which write is the first after step 2
    "metrics": ({}, "loss"),
    "best weights": ({"log_every": 100, "evaluate_every": 3, "steps": 12}, "total"),
    "sheet": ({"log_every": 100, "evaluate_every": 100, "sample_every": 3}, "total"),
    "checkpoint": ({"log_every": 100, "evaluate_every": 100, "save_every": 3}, "total"),
}


@pytest.mark.parametrize("write", CONFIGS)
@pytest.mark.parametrize("anew", [True, False], ids=["begun anew", "moved alone"])
def test_nothing_is_written_to_what_another_run_has_begun(write: str, anew: bool, other: Path, tmp_path: Path) -> None:
    run, place = tmp_path / "run", tmp_path / "elsewhere"
    fields, said = CONFIGS[write]

    def move(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 2 and said in metrics:
            run.rename(place)
            if anew:
                shutil.copytree(other, run)

    with pytest.raises(locks.Lost, match=rf"run: moved to {place} while it was written to"):
        train(run_config(**fields), splits(), run, report=move)
    assert contents(run) == contents(other) if anew else not run.exists()
    if (place / "config.json").exists():
        train(run_config(**fields), splits(), place, resume=True)


def test_a_move_in_the_middle_of_a_write_is_explained(other: Path, tmp_path: Path, monkeypatch: Any) -> None:
    run, save = tmp_path / "run", checkpoint.save_checkpoint

    def move_and_save(*arguments: Any) -> Path:
        run.rename(tmp_path / "elsewhere")
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save_checkpoint", move_and_save)
    with pytest.raises(locks.Lost, match="elsewhere"):
        train(run_config(), splits(), run)


def test_foreign_checkpoints_are_not_gone_on_from(other: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run_config(steps=6), splits(), run)
    before = contents(run)
    shutil.copytree(other / "checkpoints" / "step-12", run / "checkpoints" / "step-12")
    with pytest.raises(ValueError, match=r"step-12: of another run \(id \w+\) than that of this directory \(id \w+\)"):
        train(run_config(steps=6), splits(), run, resume=True)
    shutil.rmtree(run / "checkpoints" / "step-12")
    assert contents(run) == before
    train(run_config(steps=6), splits(), run, resume=True)


def test_a_foreign_state_in_a_checkpoint_of_ours_is_refused(other: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run_config(), splits(), run)
    step = run / "checkpoints" / "step-12"
    shutil.copy(other / "checkpoints" / "step-12" / "state.pt", step)
    digest_again(step)
    with pytest.raises(ValueError, match=r"state\.pt: of another run"):
        train(run_config(), splits(), run, resume=True)


def test_the_identity_is_drawn_once_and_changes_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for run in (first, second):
        train(run_config(steps=6), splits(), run)
    ids = [identity(run) for run in (first, second)]
    assert None not in ids and ids[0] != ids[1]
    assert_bitwise_equal(run_weights(first), run_weights(second))
    train(run_config(steps=6), splits(), first, resume=True)
    assert identity(first) == ids[0]
    assert {identity(path) for path in checkpoint.checkpoints(first)} == {ids[0]}
