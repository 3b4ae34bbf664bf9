"""Jobs of several processes, on the CPU with gloo. A program of its own: it forks, after importing torch once.

Usage: ranks_job.py PLACE SCENARIO    each rank of each job leaves PLACE/JOB.RANK.json with what it saw.

What `torchrun` tells its processes is set by hand here; `test_torchrun.py` starts the real one.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first step of an optimizer imports, for seconds; once, before forking
import torch.distributed.fsdp
import torch.distributed.tensor

from tarflow import checkpoint
from tarflow.config import ConfigError
from tarflow.data import load
from tarflow.ranks import FirstRankFailed
from tarflow.training import build, trainer
from tarflow.training.engine import Engine  # noqa: F401 - imported once, before forking
from tarflow.training.interrupt import Interrupted
from tarflow.training.layers import compile_layers
from tarflow.training.setup import open_data, resolve
from tarflow.training.trainer import train
from training_cases import images, run_config, splits

Work = Callable[[int], Any]
POISONED = (2, 7)  # step 2, row 7 of its batch: NaN, on whichever rank has it
KINDS: dict[str, dict[str, Any]] = {
    # Micro-batches, clipping that acts, flips, dropped labels, and a sheet.
    "affine": {"accumulate": 2, "clip_norm": 0.05, "data": {"flip": True}, "label_drop": 0.3, "sample_every": 6},
    "additive": {"model": {"transform": "additive"}, "data": {"conditional": False}, "noise": "uniform"},
}


def config(kind: str, **fields: Any) -> Any:
    return run_config(**{"batch_size": 12, "steps": 6, "evaluate_every": 3, **KINDS[kind], **fields})


def data() -> Any:
    """11 held-out images: no number of ranks but 1 divides them."""
    own = splits()
    return type(own)(own.train, images(11, 1), True, ())


def in_ranks(place: Path, name: str, size: int, work: Work, nodes: int = 1) -> list[int]:
    """Call `work(rank)` in `size` processes that are one job (in one without a job, for size 0); their exit statuses.

    They believe that they are on so many `nodes`.

    What it returns, or the error that it raised, is left in PLACE/NAME.RANK.json.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children, local = [], size // nodes
    for rank in range(max(1, size)):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        if size:
            os.environ |= {
                **{"RANK": str(rank), "LOCAL_RANK": str(rank % local), "GROUP_RANK": str(rank // local)},
                **{"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(local)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            }
        try:
            found = {"value": work(rank)}
        except BaseException as error:
            found = {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
        found["world"] = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 0
        (place / f".{name}.{rank}").write_text(json.dumps(found))
        (place / f".{name}.{rank}").rename(place / f"{name}.{rank}.json")
        os._exit(0 if "value" in found else 1)
    return [os.waitpid(pid, 0)[1] for pid in children]


# --- what happens at a step ------------------------------------------------------------------------------------------


def at_step(step: int, action: Callable[[torch.Tensor, slice], None]) -> None:
    """Call `action(x, rows)` on this process's part of the batch before a step (0, 1, …) is taken with it."""
    real = trainer.training_batch

    def batch(*args: Any, **options: Any) -> Any:
        x, y = real(*args, **options)
        if args[2] == step:
            action(x, options["rows"])
        return x, y

    trainer.training_batch = batch


def poison(x: torch.Tensor, rows: slice) -> None:
    row = POISONED[1]
    if rows.start <= row < rows.stop:
        x[row - rows.start] = float("nan")


def signal_to(mine: bool, signum: int) -> Callable[..., None]:
    return lambda x, rows: os.kill(os.getpid(), signum) if mine else None


# --- pieces of work --------------------------------------------------------------------------------------------------


def train_all(place: Path, names: list[str]) -> Work:
    """A run for each name, KIND-STRATEGY-SIZE, with one poisoned step."""

    def work(rank: int) -> dict[str, Any]:
        at_step(POISONED[0], poison)
        seen = {}
        for name in names:
            kind, strategy, _ = name.split("-")
            reported: list[dict[str, Any]] = []
            result = train(config(kind, strategy=strategy), data(), place / name, report=reported.append)
            seen[name] = {
                "score": result.best_score,
                "best": result.best_step,
                "skipped": result.skipped,
                "reports": len(reported),
            }
        return seen

    return work


def until(place: Path, strategy: str, stop: int | None, to: int = 0) -> Work:
    """Train or resume PLACE, until rank `to` alone gets a signal before step `stop`."""

    def work(rank: int) -> Any:
        if stop is not None:
            at_step(stop, signal_to(rank == to, signal.SIGTERM))
        try:
            return {
                "steps": train(config("affine", strategy=strategy, save_every=100), data(), place, resume=True).steps
            }
        except Interrupted as stopped:
            return {"signal": stopped.signum, "step": stopped.step}

    return work


def refused(place: Path) -> Work:
    """What cannot be shared, and other images on one rank."""

    def work(rank: int) -> list[str]:
        found = []
        for fields, own in (({"accumulate": 4}, 0), ({}, rank)):
            splits = data()
            splits.train.images[0, 0, 0, 0] += own
            try:
                train(config("affine", strategy="ddp", **fields), splits, place)
            except (ConfigError, FirstRankFailed) as error:
                found.append(f"{type(error).__name__}: {error}")
        return found

    return work


def in_turn(*parts: Work) -> Work:
    """All of it in one job: what was done to a step by one part is undone for the next."""

    def work(rank: int) -> list[Any]:
        found = []
        for part in parts:
            real = trainer.training_batch
            found.append(part(rank))
            trainer.training_batch = real
        return found

    return work


# --- scenarios -------------------------------------------------------------------------------------------------------


def everyday(place: Path) -> None:
    """The same losses, a run that goes from 2 ranks to 3, what is refused, and a rank that dies."""
    moved = place / "moved"
    in_ranks(
        place,
        "alone",
        0,
        in_turn(train_all(place, ["affine-auto-1", "additive-auto-1"]), until(place / "whole", "auto", None)),
    )
    two = in_turn(
        train_all(place, ["affine-ddp-2", "affine-fsdp-2"]), until(moved, "ddp", 2, to=1), refused(place / "refused")
    )
    in_ranks(place, "of-2", 2, two)
    in_ranks(place, "of-3", 3, in_turn(train_all(place, ["additive-ddp-3"]), until(moved, "ddp", None)))

    def dies(rank: int) -> None:
        at_step(4, signal_to(rank == 1, signal.SIGKILL))
        train(config("affine", save_every=2), data(), place / "lost")

    in_ranks(place, "lost", 3, dies)


def every_size(place: Path) -> None:
    """One process, 2 ranks on 2 nodes and 3 ranks on one with each strategy, on each kind of model."""
    in_ranks(place, "alone", 0, train_all(place, [f"{kind}-auto-1" for kind in KINDS]))
    for size, nodes in ((2, 2), (3, 1)):
        names = [f"{kind}-{strategy}-{size}" for kind in KINDS for strategy in ("ddp", "fsdp")]
        in_ranks(place, f"of-{size}", size, train_all(place, names), nodes)


def resumed(place: Path) -> None:
    """One run by 2 ranks of FSDP2, 3 of DDP, 3 of FSDP2 and one process, stopped by a signal to one of them."""
    in_ranks(place, "whole", 0, until(place / "whole", "auto", None))
    in_ranks(place, "part-1", 2, until(place / "run", "fsdp", 0, to=1))
    in_ranks(place, "part-2", 3, until(place / "run", "ddp", 2, to=2))
    in_ranks(place, "part-3", 3, until(place / "run", "fsdp", 3, to=0))
    in_ranks(place, "part-4", 0, until(place / "run", "auto", None))


def compiled(place: Path) -> None:
    """Compiled layers under both strategies, with a compiler that needs no other one."""

    def work(rank: int) -> int:
        build.compile_layers = lambda flow: compile_layers(flow, backend="aot_eager")
        for strategy in ("ddp", "fsdp"):
            train(config("affine", strategy=strategy, compile="on"), data(), place / f"affine-{strategy}-2")
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    in_ranks(place, "alone", 0, lambda rank: train(config("affine"), data(), place / "affine-auto-1").steps)
    in_ranks(place, "of-2", 2, work)


def stored(place: Path) -> None:
    """Images that are too many for the memory: one rank makes their store, the others wait for it."""
    load.MEMORY_SHARE = 0.0
    os.environ["TARFLOW_CACHE"] = str(place / "cache")
    sections = {
        "model": {"image_size": 4, "patch_size": 2, "width": 16, "head_dim": 8, "layers": [1, 1]},
        "data": {"source": str(place / "photos"), "skip_bad": True},
        "training": {"steps": 8, "batch_size": 8, "sample_every": 0, "evaluate_every": 4, "log_every": 1},
    }

    def work(name: str) -> Work:
        def train_it(rank: int) -> list[str]:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                splits = open_data(sections)
            assert splits.train.mapped
            train(resolve(sections, splits), splits, place / name)
            return [str(warning.message) for warning in said if "are decoded once" in str(warning.message)]

        return train_it

    in_ranks(place, "of-2", 2, work("stored-2"))
    in_ranks(place, "alone", 0, work("stored-1"))


def ended(place: Path) -> None:
    """2 and 3 ranks: a wave of signals that reaches all, before and while they save; and a launcher that is killed."""

    def waves(name: str) -> Work:
        """All ranks get the signal twice before step 2, and once more when rank 0 saves."""

        def work(rank: int) -> Any:
            save = checkpoint.save_checkpoint

            def saves(*arguments: Any) -> Path:
                found = save(*arguments)
                for other in place.glob(f"{name}.pid.*"):
                    os.kill(int(other.read_text()), signal.SIGTERM)
                return found

            checkpoint.save_checkpoint = saves
            (place / f"{name}.pid.{rank}").write_text(str(os.getpid()))
            at_step(2, lambda x, rows: [signal_to(True, signal.SIGTERM)(x, rows) for _ in range(2)] and None)
            return until(place / name, "ddp", None)(rank)

        return work

    def orphaned(name: str, size: int) -> None:
        """A launcher that rank 1 kills before step 3, as `kill -9` does."""

        def work(rank: int) -> Any:
            launcher = os.getppid()

            def kill(x: torch.Tensor, rows: slice) -> None:
                if rank == 1:
                    os.kill(launcher, signal.SIGKILL)
                while os.getppid() == launcher:
                    time.sleep(0.01)

            at_step(3, kill)
            return until(place / name, "ddp", None)(rank)

        launcher = os.fork()
        if launcher == 0:
            in_ranks(place, name, size, work)
            os._exit(1)
        os.waitpid(launcher, 0)
        end = time.monotonic() + 60
        while len(list(place.glob(f"{name}.?.json"))) < size and time.monotonic() < end:
            time.sleep(0.05)

    for size in (2, 3):
        in_ranks(place, f"wave-{size}", size, waves(f"wave-{size}"))
        orphaned(f"orphans-{size}", size)


SCENARIOS = {each.__name__: each for each in (everyday, every_size, resumed, compiled, stored, ended)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    SCENARIOS[sys.argv[2]](Path(sys.argv[1]))
