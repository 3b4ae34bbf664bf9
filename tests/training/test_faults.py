"""What survives a fault: each is injected for real, and afterwards the run ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.killing import write_images
from forked import exit_code, fork, mount_small_disk, resize_disk, wait_for
from tarflow import checkpoint
from tarflow.cli import main
from tarflow.config import ConfigError
from tarflow.storage import DamageWarning, InUse
from tarflow.training.directory import check_state
from tarflow.training.interrupt import Interrupted
from tarflow.training.trainer import train
from training_cases import assert_bitwise_equal, digest_again, run_config, run_weights, splits

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
CONFIG = run_config()


def timeless(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if "second" not in k} for m in checkpoint.read_metrics(run)]


def assert_same_run(a: Path, b: Path) -> None:
    assert_bitwise_equal(run_weights(a), run_weights(b))
    assert timeless(a) == timeless(b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to: steps 4 and 8, evaluated at 5 and 10, end at 12."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(CONFIG, splits(), run)
    return run


def train_until(step: int, run: Path, config: Any = CONFIG) -> None:
    def stop(metrics: dict[str, Any]) -> None:
        if metrics["step"] == step and "loss" in metrics:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(config, splits(), run, report=stop)


# --- two at once ---------------------------------------------------------------------------------------------------


@forks
def test_a_second_run_on_one_directory_is_refused_and_a_killed_one_leaves_it_free(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, reached = tmp_path / "run", tmp_path / "reached"

    def wait(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 6:
            reached.touch()
            time.sleep(60)

    first = fork(lambda: train(CONFIG, splits(), run, report=wait) and None)
    wait_for(reached, first)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InUse, match=rf"run: process {first} on .* is writing to it"):
        train(CONFIG, splits(), run, resume=True)
    assert main(["train", "--resume", "--out", str(run)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"tarflow: error: {run}: process {first}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    os.kill(first, signal.SIGKILL)
    assert exit_code(first) == -signal.SIGKILL
    train(CONFIG, splits(), run, resume=True)
    assert_same_run(whole, run)
    assert not list(run.glob(".*"))


def test_the_lock_goes_when_a_run_ends_badly(tmp_path: Path) -> None:
    train_until(3, tmp_path / "run")
    with pytest.raises(ConfigError):
        train(run_config(lr=5e-4), splits(), tmp_path / "run", resume=True)
    train(CONFIG, splits(), tmp_path / "run", resume=True)


def test_old_checkpoints_go_on_resuming_where_a_kill_came_between_the_last_one_and_their_removal(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, names, real = tmp_path / "run", checkpoint.checkpoints, checkpoint.remove_old_checkpoints

    def killed(run: Path, keep_last: int, best_step: int | None) -> None:
        if (run / checkpoint.CHECKPOINTS / "step-12").exists():
            raise KeyboardInterrupt
        real(run, keep_last, best_step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "remove_old_checkpoints", killed)
        train(CONFIG, splits(), run)
    assert len(names(run)) == len(names(whole)) + 1
    train(CONFIG, splits(), run, resume=True)
    assert [path.name for path in names(run)] == [path.name for path in names(whole)]
    assert_same_run(whole, run)


# --- damage --------------------------------------------------------------------------------------------------------


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda step: (step / name).write_bytes(change((step / name).read_bytes())) and None


def a_bit(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 4]) + data[-99:]


def without_digests(step: Path) -> None:
    (step / "digests.json").unlink()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a truncated state": (spoil("state.pt", lambda data: data[:-1000]), r"state\.pt: damaged, \d+ bytes of \d+"),
    "an empty state": (spoil("state.pt", lambda data: b""), r"state\.pt: damaged, 0 bytes of \d+"),
    "a bit of the weights": (spoil("model.safetensors", a_bit), r"model\.safetensors: damaged, its digest"),
    "no state": (lambda step: (step / "state.pt").unlink(), r"state\.pt: missing"),
    "no weights": (lambda step: (step / "model.safetensors").unlink(), r"model\.safetensors: missing"),
    "a truncated config": (spoil("config.json", lambda data: data[:40]), r"config\.json: damaged, 40 bytes of \d+"),
    "damaged digests": (spoil("digests.json", lambda data: data[:40]), r"digests\.json: damaged"),
    "digests of nothing": (spoil("digests.json", lambda data: b"{}"), r"digests\.json: damaged"),
    "no digests": (without_digests, r"digests\.json: missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_checkpoint_is_passed_over(name: str, whole: Path, tmp_path: Path) -> None:
    damage, reason = DAMAGES[name]
    run = tmp_path / "run"
    train_until(9, run)
    assert [path.name for path in checkpoint.checkpoints(run)] == ["step-5", "step-8", "step-9"]
    damage(run / "checkpoints" / "step-9")
    with pytest.warns(DamageWarning, match=rf"step-9/{reason}.*; going back to .*step-8$"):
        train(CONFIG, splits(), run, resume=True)
    assert_same_run(whole, run)
    assert (run / "checkpoints" / "damaged-step-9").is_dir(), "set aside, so that it does not count as the newest"


def test_where_no_checkpoint_is_sound_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train_until(9, run)
    for step in checkpoint.checkpoints(run):
        (step / "state.pt").write_bytes(b"")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"none of its checkpoints is sound: .*step-9/state\.pt.*step-5/state\.pt"):
        train(CONFIG, splits(), run, resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_lost_or_damaged_best_weights_are_put_back(whole: Path, tmp_path: Path) -> None:
    for change in (lambda file: file.unlink(), lambda file: file.write_bytes(b"")):
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        change(run / "model.safetensors")
        train(CONFIG, splits(), run, resume=True)
        assert_same_run(whole, run)


@pytest.mark.parametrize(
    "command",
    [
        *("sample {run} -n 1 --out {out}.png", "evaluate {run}", "score {run} digits --out {out}.csv", "report {run}"),
        *("quality {run}", "sweep {run}", "denoise {run} digits --out {out}"),
        "train --recipe digits --init {run} --out {out}",
    ],
)
def test_no_command_uses_damaged_best_weights(
    command: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    spoil("model.safetensors", a_bit)(run)
    assert main(command.format(run=run, out=tmp_path / "out").split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tarflow: error: {run}/model.safetensors: damaged, its digest is not that")
    assert line.endswith(f"{run}/checkpoints/step-12 is sound, and may be given in its place")


def test_what_a_killed_process_left_half_written_is_cleared_away(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_until(5, run)
    (run / "samples").mkdir()
    left = [run / ".a.partial-1", run / "checkpoints" / ".step-8.partial-2", run / "samples" / ".s.png.partial-3"]
    for path in left:
        path.touch()
    train(CONFIG, splits(), run, resume=True)
    assert not any(path.exists() for path in left)
    assert_same_run(whole, run)


def test_a_lost_config_is_named_and_never_made_up(tmp_path: Path) -> None:
    train_until(5, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: missing; copy that of .*step-5"):
        train(CONFIG, splits(), tmp_path / "run", resume=True)
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(CONFIG, splits(), tmp_path / "run")


def test_sampling_goes_back_to_a_sound_checkpoint_and_says_so(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "model.safetensors").unlink()  # as of a run that was not evaluated yet
    newest, older = checkpoint.checkpoints(run)[::-1][:2]
    (newest / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes()[:-10])
    sample = ["-n", "2", "--device", "cpu", "--solver", "sequential", "--out", str(tmp_path / "out.png")]
    assert main(["sample", str(run), *sample]) == 0
    warning = capsys.readouterr().err.splitlines()[0]
    assert warning.startswith(f"tarflow: warning: {newest}/model.safetensors: damaged")
    assert warning.endswith(f"going back to {older}")
    assert main(["sample", str(newest), *sample]) == 2, "one that was named is not replaced by another"
    assert f"{newest}/model.safetensors: damaged" in capsys.readouterr().err
    (run / "model.safetensors").write_bytes(b"half")
    assert main(["sample", str(run), *sample]) == 2, "nor are the best weights by those of another step"
    assert f"{older} is sound, and may be given in its place" in capsys.readouterr().err


# --- the machine ---------------------------------------------------------------------------------------------------


@forks
@pytest.mark.parametrize("size", ["60k", "500k"])
def test_a_full_disk_ends_a_run_and_costs_nothing(size: str, whole: Path, tmp_path: Path) -> None:
    """A real one: a small tmpfs that only the forked process sees. It is full at the first write, or at a later one."""
    disk, result = tmp_path / "disk", tmp_path / "result.json"
    disk.mkdir()

    def work() -> int:
        if not mount_small_disk(disk, size):
            return 77
        try:
            train(CONFIG, splits(), disk / "run")
            said = ""
        except OSError as error:
            said = str(error)
        found = checkpoint.checkpoints(disk / "run")
        problems = [problem for path in found if (problem := checkpoint.damage(path))]
        hidden = [str(path) for path in disk.rglob(".*")]
        resize_disk(disk, "50m")
        train(CONFIG, splits(), disk / "run", resume=True)
        assert_same_run(whole, disk / "run")
        result.write_text(json.dumps({"said": said, "steps": len(found), "problems": problems, "hidden": hidden}))
        return 0

    code = exit_code(fork(work))
    if code == 77:
        pytest.skip("a tmpfs may not be mounted here")
    assert code == 0
    report = json.loads(result.read_text())
    assert re.search("No space left on device|room on the disk", report["said"]) and str(disk / "run") in report["said"]
    assert report["problems"] == [] and report["hidden"] == []
    assert (report["steps"] > 0) == (size == "500k")


@forks
def test_sigterm_saves_within_its_grace_period(whole: Path, tmp_path: Path) -> None:
    run, reached = tmp_path / "run", tmp_path / "reached"

    def slow(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 6:
            reached.touch()
        time.sleep(0.05)

    def work() -> int:
        try:
            train(CONFIG, splits(), run, report=slow)
        except Interrupted as stop:
            return 128 + stop.signum
        return 0

    pid = fork(work)
    wait_for(reached, pid)
    os.kill(pid, signal.SIGTERM)
    assert exit_code(pid, seconds=10) == 128 + signal.SIGTERM  # the shortest grace that schedulers usually give
    latest = checkpoint.latest_checkpoint(run)
    assert latest is not None and latest.name in ("step-6", "step-7") and checkpoint.damage(latest) is None
    train(CONFIG, splits(), run, resume=True)
    assert_same_run(whole, run)


def test_moved_data_are_asked_for_and_known_by_their_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new, run = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    write_images(old)
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        "[model]\npatch_size = 2\nwidth = 16\nhead_dim = 8\nlayers = [1]\n"
        "[training]\nbatch_size = 8\nsteps = 2\nsave_every = 1\nsample_every = 0\n"
    )
    command = ["train", "--out", str(run), "--device", "cpu"]
    assert main([*command, "--recipe", str(recipe), "--data", str(old)]) == 0
    before = run_weights(run)
    old.rename(new)
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    assert re.search(r"old'?: no such path.*name their new place by --data$", capsys.readouterr().err.strip())
    assert main([*command, "--resume", "--data", str(new)]) == 0
    assert_bitwise_equal(before, run_weights(run))
    data = checkpoint.read_config(run).data
    assert data is not None and data.source == data.place == str(new)
    other = tmp_path / "other"
    shutil.copytree(new, other)
    shutil.copy(other / "test-00000.parquet", other / "train-00001.parquet")
    capsys.readouterr()
    assert main([*command, "--resume", "--data", str(other)]) == 2
    assert "data.source: the training images are not those that" in capsys.readouterr().err


# --- states that are not of this run -------------------------------------------------------------------------------

STATES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no step": (lambda state: state.pop("step"), "step: expected int"),
    "the step of another": (lambda state: state.update(step=3), "expected the step of its directory"),
    "a score that is none": (lambda state: state.update(best_score=float("nan")), "and a score"),
    "a wrong shape": (
        lambda state: state["flow"].update({next(iter(state["flow"])): torch.zeros(3)}),
        "expected shape",
    ),
    "an extra tensor": (lambda state: state["flow"].update(extra=torch.zeros(3)), "extra is not one of this model's"),
    "weights that are not finite": (lambda state: next(iter(state["flow"].values())).fill_(float("nan")), "not finite"),
    "moments of another shape": (
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
        r"optimizer: 0\.exp_avg: expected numbers of shape",
    ),
    "moments that are not finite": (
        lambda state: state["optimizer"]["state"][1]["exp_avg_sq"].fill_(float("inf")),
        r"optimizer: 1\.exp_avg_sq: holds numbers that are not finite",
    ),
    "no moments": (lambda state: state["optimizer"]["state"].clear(), "expected moments of"),
    "another optimizer": (
        lambda state: state["optimizer"]["param_groups"][0].update(betas=(0.5, 0.5)),
        "optimizer: betas differ",
    ),
}
# Found where it is opened: the checkpoint before it is taken.
CONTENTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a sparse tensor": (lambda state: state.update(x=torch.eye(2).to_sparse()), "not a plain array of numbers"),
    "an expanded moment": (
        lambda state: state["optimizer"]["state"][0].update(
            exp_avg=torch.zeros(1).expand(state["optimizer"]["state"][0]["exp_avg"].shape)
        ),
        "repeats its numbers",
    ),
    "an expanded weight": (
        lambda state: state["flow"].update({k: v[:1].expand_as(v) for k, v in state["flow"].items() if len(v) > 1}),
        "repeats its numbers",
    ),
    "lists in lists": (lambda state: state.update(x=json.loads("[" * 300 + "]" * 300)), "nested more than"),
}


@pytest.mark.parametrize("name", [*STATES, *CONTENTS])
def test_a_state_that_does_not_fit_is_one_line_that_names_it(name: str, whole: Path, tmp_path: Path) -> None:
    """Whole, as somebody's mistake or malice leaves it: that is no damage, and no other checkpoint is taken for it."""
    change, words = (STATES | CONTENTS)[name]
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    step = run / "checkpoints" / "step-12"
    state = checkpoint.load_state(step)
    change(state)
    torch.save(state, step / "state.pt")
    digest_again(step)
    with pytest.raises(ValueError, match=rf"(?s)step-12/state\.pt: .*{words}") as caught:
        train(CONFIG, splits(), run, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["expanded", "transposed"])
def test_moments_that_a_fused_step_would_write_past_are_refused(layout: str) -> None:
    """Also where they do not come from `load_state`, which puts every tensor in order."""
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = torch.zeros(4, 4).t() if layout == "transposed" else torch.zeros(1).expand(4, 4)
    numbers = dict.fromkeys(("step", "skipped", "skipped_in_a_row", "best_step", "best_score", "seconds"), 1)
    state = numbers | {"data": "", "ema_updates": 1, "flow": {}, "optimizer": saved}
    words = {"expanded": "repeats its numbers", "transposed": "expected numbers in C's order"}[layout]
    with pytest.raises(ValueError, match=rf"state\.pt: optimizer: 0\.exp_avg: .*{words}"):
        check_state(state, optimizer, Path("step-1/state.pt"), None)
