"""What `benchmarks.faults` does: forks trainings, kills them, says where, and compares what they come to."""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import os
import platform
import random
import signal
import struct
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from tarflow import __version__, checkpoint, storage
from tarflow.data import load
from tarflow.data.errors import DataWarning
from tarflow.data.images import from_array
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare
from tarflow.model.flow import TarFlow
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.tensor_files import read_tensors
from tarflow.training import trainer as trainer_module
from tarflow.training.setup import open_data, resolve

PHASES = ("opening", "between", "step", "metrics", "evaluation", "best weights", "samples", "checkpoint", "pruning")
AIMS = ("checkpoint", "step", "evaluation", "samples", "opening", "best weights")  # of the kills in a phase
BATCH, TRAIN, HELD_OUT, GROUP = 32, 96, 16, 16  # images: of a step, of the sets, of a row group
PATIENCE = 60.0  # seconds until a child that makes no progress counts as hung
MODEL = {"patch_size": 2, "width": 16, "head_dim": 8, "layers": [1, 1]}
TRAINING = {
    "batch_size": BATCH,
    "lr": 1e-3,
    "warmup_steps": 2,
    "log_every": 1,
    "evaluate_every": 7,
    "sample_every": 10,
    "save_every": 3,
}


class Board:
    """Where a child stands: memory that parent and child share, and that a kill cannot take back.

    The child itself says when it has come to where it is to be killed: a parent that looks now and then may miss that.
    """

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 16)
        self.goal, self.aim = 0, ""

    def begin(self, goal: int = 0, aim: str = "") -> None:
        """For a new child, which is to come to the phase `aim`, or to any, after `goal` steps."""
        self.goal, self.aim = goal, aim
        self.memory[1] = False
        self.write("opening", 0)

    def write(self, phase: str | None = None, step: int | None = None) -> None:
        """Say what begins, or which step is done."""
        if phase is not None:
            self.memory[0] = PHASES.index(phase)
        if step is not None:
            self.memory[8:16] = struct.pack("q", step)
        if self.step >= self.goal and self.aim in ("", self.phase):
            self.memory[1] = True

    @property
    def arrived(self) -> bool:
        """Whether the child has come there, and may be past it by now."""
        return bool(self.memory[1])

    @property
    def phase(self) -> str:
        """What is being done."""
        return PHASES[self.memory[0]]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(struct.unpack("q", self.memory[8:16])[0])

    def marks(self, phase: str, call: Callable[..., Any], *, inside: str | None = None) -> Callable[..., Any]:
        """`call`, during which the board shows `phase`; only where it showed `inside`, if that is given."""

        @functools.wraps(call)
        def marked(*arguments: Any, **named: Any) -> Any:
            before = self.phase
            if inside not in (None, before):
                return call(*arguments, **named)
            self.write(phase)
            try:
                return call(*arguments, **named)
            finally:
                self.write(before)

        return marked


def write_images(folder: Path) -> None:
    """Random 4x4 images of two classes as Parquet files of PNGs, with a split of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", HELD_OUT)):
        labels = np.arange(count) % 2
        pixels = generator.integers(0, 128, (count, 1, 4, 4)) + 128 * labels[:, None, None, None]
        encoded = []
        for image in pixels.astype(np.uint8):
            buffer = io.BytesIO()
            from_array(image).save(buffer, "PNG")
            encoded.append(buffer.getvalue())
        table = pa.table({"image": pa.array(encoded, pa.binary()), "label": labels})
        pq.write_table(table, folder / f"{split}-00000.parquet", row_group_size=GROUP)


def warm_up(place: Path) -> None:
    """Train a step here, so that what is imported or set up at first use is there in every child from the start."""
    torch.set_num_threads(1)
    train(place / "images", "memory", place / "warm-up", 1)


def train(source: Path, loader: str, run: Path, steps: int) -> None:
    """Train, or go on, from opening the data to the last step: what a user's process does."""
    data: dict[str, Any] = {"source": str(source)}
    sections: dict[str, dict[str, Any]] = {"model": MODEL, "data": data, "training": TRAINING | {"steps": steps}}
    with contextlib.ExitStack() as stack:
        if loader == "stored":  # as if they were too many for the memory
            stack.enter_context(mock.patch.object(load, "MEMORY_SHARE", 0.0))
            stack.enter_context(mock.patch.dict(os.environ, TARFLOW_CACHE=str(source.parent / "cache")))
            stack.enter_context(warnings.catch_warnings(action="ignore", category=DataWarning))
        splits = open_data(sections)
    trainer_module.train(resolve(sections, splits), splits, run, resume=True)


def child(board: Board, work: Callable[[], None], *, die_in_write: int | None = None, stays: bool = False) -> int:
    """Do `work` in a forked process; its id. With `die_in_write` n it kills itself at the n-th flush to the disk.

    One that `stays` waits to be killed where it has done everything before the parent came to it.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)  # who computes with one misses none of the threads that a fork leaves behind
        _watch(board)
        if die_in_write is not None:
            real, calls = storage._flush, iter(range(die_in_write + 1))

            def flush(path: Path) -> None:
                if next(calls) == die_in_write:
                    os.kill(os.getpid(), signal.SIGKILL)
                real(path)

            storage._flush = flush
        work()
        while stays and board.arrived:
            time.sleep(PATIENCE)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def _watch(board: Board) -> None:
    """Have the training of this process show on the board what it does."""
    of_trainer: Any = trainer_module.Trainer
    take_step, run = of_trainer.take_step, of_trainer.run

    def counted(self: Any) -> Any:
        measured = take_step(self)
        board.write(step=self.step)
        return measured

    def begun(self: Any, stop: Any) -> Any:
        board.write("between")
        return run(self, stop)

    of_trainer.take_step, of_trainer.run = board.marks("step", counted), begun
    of_trainer.evaluate = board.marks("evaluation", of_trainer.evaluate)
    of_trainer.draw_samples = board.marks("samples", of_trainer.draw_samples)
    checkpoint.save_checkpoint = board.marks("checkpoint", checkpoint.save_checkpoint)
    checkpoint.remove_old_checkpoints = board.marks("pruning", checkpoint.remove_old_checkpoints)
    checkpoint.append_metrics = board.marks("metrics", checkpoint.append_metrics)
    TarFlow.save_weights = board.marks("best weights", TarFlow.save_weights, inside="evaluation")  # type: ignore[method-assign]


def campaign(place: Path, loader: str, kills: int, seed: int) -> dict[str, Any]:
    """A whole run and one killed `kills` times, in `place`: where the kills fell, and whether the runs are equal."""
    source = place / "images"
    if loader == "mapped":
        source = place / "prepared"
        prepare(str(place / "images"), source, LoadOptions())
    rng, board = random.Random(f"{seed} {loader}"), Board()
    steps = 12 * kills + 15
    whole, killed = place / f"{loader}-whole", place / f"{loader}-killed"
    board.begin()
    status = _end_of(child(board, functools.partial(train, source, loader, whole, steps)), board)
    if status:
        raise RuntimeError(f"{loader}: the run that nobody killed ended with {status}")
    deaths: list[dict[str, Any]] = []
    sound = True
    while len(deaths) < kills:
        how = ("by the clock", "in a write", "in a phase")[len(deaths) % 3]
        latest = checkpoint.latest_checkpoint(killed)
        came_from = int(latest.name.removeprefix("step-")) if latest else 0
        goal, aim = came_from + rng.randrange(4, 11), rng.choice(AIMS)
        if how == "in a phase" and aim == "opening":
            goal = 0
        board.begin(goal, aim if how == "in a phase" else "")
        work = functools.partial(train, source, loader, killed, steps)
        if how == "in a write":
            pid = child(board, work, die_in_write=rng.randrange(2, 30))
        else:
            pid = child(board, work, stays=True)
            _wait_for(lambda: board.arrived, pid, board)
            if how == "by the clock":
                time.sleep(rng.uniform(0, 0.03))  # anywhere in what comes then
            elif aim == "opening":
                time.sleep(rng.uniform(0, 0.2))
            os.kill(pid, signal.SIGKILL)
        status = _end_of(pid, board)
        if not os.WIFSIGNALED(status):
            raise RuntimeError(f"{loader}: a child ended with {status} before it could be killed; {deaths}")
        bad = [problem for path in checkpoint.checkpoints(killed) if (problem := checkpoint.damage(path))]
        sound &= not bad
        death = {"kill": how, "phase": board.phase, "step": board.step or None, "resumed_from": came_from or None}
        deaths.append(death | ({"damaged": bad} if bad else {}))
    board.begin()
    status = _end_of(child(board, functools.partial(train, source, loader, killed, steps)), board)
    equal = {"finished": status == 0} | (compare(whole, killed) if status == 0 else {})
    fell = dict(sorted(Counter(death["phase"] for death in deaths).items()))
    report = {"steps": steps, "kills": kills, "fell": fell, "equal": equal, "sound": sound, "deaths": deaths}
    names = set(_names(whole)) ^ set(_names(killed))
    return report | ({"in one run only": sorted(names)} if names else {})


def _wait_for(holds: Callable[[], bool], pid: int, board: Board) -> None:
    """Until it holds, or the child is dead. Raises RuntimeError where it hangs, after ending it."""
    step, since = board.step, time.monotonic()
    while not holds() and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.0002)
        if board.step != step:
            step, since = board.step, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise RuntimeError(f"a child hung in {board.phase} after step {board.step}")


def _end_of(pid: int, board: Board) -> int:
    """The status that a child ends with."""
    _wait_for(lambda: False, pid, board)
    return os.waitpid(pid, 0)[1]


def compare(whole: Path, killed: Path) -> dict[str, bool]:
    """Whether two runs came to the same, bit for bit: all kinds of weights, moments, counts, and metrics but times."""
    last = [checkpoint.latest_checkpoint(run) for run in (whole, killed)]
    assert last[0] is not None and last[1] is not None
    states = [checkpoint.load_state(path) for path in last if path is not None]
    metrics = [
        [{k: v for k, v in line.items() if "second" not in k} for line in checkpoint.read_metrics(run)]
        for run in (whole, killed)
    ]
    plain = [{k: v for k, v in state.items() if k not in ("flow", "optimizer", "seconds", "run")} for state in states]
    moments = [
        {f"{i}.{name}": value for i, values in state["optimizer"]["state"].items() for name, value in values.items()}
        for state in states
    ]
    return {
        "last weights": _same(states[0]["flow"], states[1]["flow"]),
        "averaged weights": _same(*(read_tensors(path / WEIGHTS_FILE) for path in last if path is not None)),
        "best weights": _same(*(read_tensors(run / WEIGHTS_FILE) for run in (whole, killed))),
        "optimizer": _same(*moments)
        and states[0]["optimizer"]["param_groups"] == states[1]["optimizer"]["param_groups"],
        "counts and scores": plain[0] == plain[1],
        "metrics": metrics[0] == metrics[1],
        "files": _names(whole) == _names(killed),
    }


def _same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)


def _names(run: Path) -> list[str]:
    """What is in a directory, hidden files too: nothing may be left behind."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


def machine() -> dict[str, Any]:
    """What it ran on."""
    return {
        "device": f"cpu, {os.cpu_count()} cores of {platform.machine()}, one thread, float32",
        "system": platform.system(),
        "versions": {"tarflow": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
    }
