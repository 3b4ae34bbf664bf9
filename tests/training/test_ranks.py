"""2 and 3 processes train what one does, from each other's checkpoints, and say which of them is gone.

The jobs are those of `ranks_job.py`, on the CPU with gloo.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from photographs import make_photographs
from tarflow import checkpoint
from training_cases import run_weights

TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="the jobs fork, and talk with gloo",
)


def run_job(place: Path, scenario: str) -> None:
    path = os.pathsep.join([str(TESTS / "support"), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    # torch's own tracer looks at `.grad` of what it traces, and hides the warning only from where it is shown.
    ignored = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        ignored,
        str(TESTS / "training" / "ranks_job.py"),
        str(place),
        scenario,
    ]
    # In a session of its own, so that ranks that wait for each other can be ended together.
    job = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )
    try:
        _, stderr = job.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        pytest.fail(f"the ranks wait for each other, or the machine is slow: {job.communicate()[1]}")
    assert job.returncode == 0, stderr


def seen(place: Path, job: str, size: int, world: int | None = None) -> list[Any]:
    """What each rank of a job returned. Each must have been one of `size`, in a process group if there are several."""
    found = [json.loads((place / f"{job}.{rank}.json").read_text()) for rank in range(size)]
    assert [each.get("trace") for each in found] == [None] * size
    assert [each["world"] for each in found] == [(0 if size == 1 else size) if world is None else world] * size
    return [each["value"] for each in found]


@pytest.fixture(scope="module")
def everyday(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("everyday")
    run_job(place, "everyday")
    return place


def column(run: Path, name: str) -> list[float]:
    return [m[name] for m in checkpoint.read_metrics(run) if name in m]


def assert_same_run(got: Path, want: Path, skips: int = 0) -> None:
    """Equal up to the rounding of sums in another order: losses, norms, scores, and all that a run comes to."""
    for name in ("step", "loss", "grad_norm", "standard_error", "skipped", "lr"):
        ours, theirs = column(got, name), column(want, name)
        assert len(ours) == len(theirs) > 0, name
        assert sum(map(math.isnan, theirs)) == (skips if name in ("loss", "grad_norm") else 0), name
        assert ours == pytest.approx(theirs, abs=1e-6, rel=1e-6, nan_ok=True), name
    for name in (n for m in checkpoint.read_metrics(want) for n in m if "bits_per_dim" in n):
        assert column(got, name) == pytest.approx(column(want, name), abs=1e-6, nan_ok=True), name
    ours, theirs = run_weights(got), run_weights(want)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=5e-6, rtol=1e-4, msg=f"{got.name}: {name}")
    sheets = [sorted(path.name for path in (run / "samples").glob("*.png")) for run in (got, want)]
    assert sheets[0] == sheets[1]


def check_runs(place: Path, of_size: dict[int, list[str]]) -> None:
    (alone,) = seen(place, "alone", 1)
    alone = alone if isinstance(alone, dict) else alone[0]
    for size, names in of_size.items():
        results = [each if isinstance(each, dict) else each[0] for each in seen(place, f"of-{size}", size)]
        for name in names:
            one = f"{name.split('-')[0]}-auto-1"
            assert_same_run(place / name, place / one, skips=1)
            first, *others = [result[name] for result in results]
            assert first["reports"] == alone[one]["reports"] > 6 and first["skipped"] == 1
            assert all(other == first | {"reports": 0} for other in others), f"{name}: the ranks do not agree"
            assert first["score"] == pytest.approx(alone[one]["score"], abs=1e-6)
            assert first["best"] == alone[one]["best"]


def test_the_losses_are_those_of_one_process(everyday: Path) -> None:
    check_runs(everyday, {2: ["affine-ddp-2", "affine-fsdp-2"], 3: ["additive-ddp-3"]})
    assert (everyday / "affine-fsdp-2" / "samples" / "step-0000006.png").exists()


def test_a_signal_to_one_rank_saves_on_all_and_another_number_of_ranks_resumes(everyday: Path) -> None:
    assert [parts[1] for parts in seen(everyday, "of-2", 2)] == [{"signal": signal.SIGTERM, "step": 3}] * 2
    assert [parts[1] for parts in seen(everyday, "of-3", 3)] == [{"steps": 6}] * 3
    assert_same_run(everyday / "moved", everyday / "whole")


def test_what_cannot_be_shared_is_refused_by_name(everyday: Path) -> None:
    first, second = (parts[2] for parts in seen(everyday, "of-2", 2))
    batch = "training.batch_size: expected a multiple of 8 (2 processes, accumulate 4), got 12"
    other = "data: expected the same on every rank, but rank 1 has others than rank 0"
    assert first == [f"ConfigError: {batch}", f"ConfigError: {other}"]
    assert second == [
        f"FirstRankFailed: ConfigError: {batch}",
        f"ConfigError: {other}",
    ]  # one says it, or each of itself
    assert not (everyday / "refused").exists()


def test_a_rank_that_dies_is_noticed_and_the_last_checkpoint_is_good(everyday: Path) -> None:
    assert not (everyday / "lost.1.json").exists()
    found = [json.loads((everyday / f"lost.{rank}.json").read_text()) for rank in (0, 2)]
    assert [each["error"] for each in found] == ["RankLost"] * 2, [each["trace"] for each in found]
    texts = [f"rank {rank} of 3 lost the connection to another rank, which is gone" for rank in (0, 2)]
    assert [each["text"] for each in found] == texts
    latest = checkpoint.latest_checkpoint(everyday / "lost")
    assert latest is not None and latest.name == "step-4"
    assert checkpoint.load_state(latest)["step"] == 4
    checkpoint.open_run(latest)


@pytest.mark.slow
def test_a_wave_of_signals_to_all_ranks_and_the_end_of_their_launcher_save(tmp_path: Path) -> None:
    """A scheduler signals every process, a launcher its own again, and nobody those whose launcher is killed."""
    run_job(tmp_path, "ended")
    for size in (2, 3):
        for name, left in (
            (f"wave-{size}", {"signal": signal.SIGTERM, "step": 3}),
            (f"orphans-{size}", {"signal": signal.SIGHUP, "step": 4}),
        ):
            assert seen(tmp_path, name, size) == [left] * size, name
            latest = checkpoint.latest_checkpoint(tmp_path / name)
            assert latest is not None and latest.name == f"step-{left['step']}"
            assert checkpoint.damage(latest) is None
            assert not list((tmp_path / name).rglob(".*")), "left behind"


@pytest.mark.slow
def test_every_kind_on_every_number_of_ranks_with_every_strategy(tmp_path: Path) -> None:
    run_job(tmp_path, "every_size")
    sizes = (2, 3)
    check_runs(tmp_path, {n: [f"{k}-{s}-{n}" for k in ("affine", "additive") for s in ("ddp", "fsdp")] for n in sizes})


@pytest.mark.slow
def test_one_run_by_ever_other_ranks_is_the_run_of_one_process(tmp_path: Path) -> None:
    run_job(tmp_path, "resumed")
    for part, size, step in (("part-1", 2, 1), ("part-2", 3, 3), ("part-3", 3, 4)):
        assert seen(tmp_path, part, size) == [{"signal": signal.SIGTERM, "step": step}] * size
    assert seen(tmp_path, "part-4", 1) == seen(tmp_path, "whole", 1) == [{"steps": 6}]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_compiled_layers_are_the_same_run(tmp_path: Path) -> None:
    run_job(tmp_path, "compiled")
    seen(tmp_path, "alone", 1)
    assert all(graphs > 0 for graphs in seen(tmp_path, "of-2", 2)), "nothing was compiled"
    for strategy in ("ddp", "fsdp"):
        assert_same_run(tmp_path / f"affine-{strategy}-2", tmp_path / "affine-auto-1")


@pytest.mark.slow
def test_one_rank_makes_the_store_that_all_of_them_map(tmp_path: Path) -> None:
    make_photographs(tmp_path / "photos", 40)
    broken = tmp_path / "photos" / "IMG_0011.png"
    assert broken.exists()
    broken.write_bytes(b"no image")
    run_job(tmp_path, "stored")
    (alone,), both = seen(tmp_path, "alone", 1), seen(tmp_path, "of-2", 2)
    assert alone == [] and sorted(map(len, both)) == [0, 1], "it was made twice"
    assert_same_run(tmp_path / "stored-2", tmp_path / "stored-1")
