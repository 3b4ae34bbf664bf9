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
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which the first step of an optimizer imports, for seconds; once, before forking
import torch.distributed.fsdp
import torch.distributed.tensor

from tarflow import checkpoint
from tarflow.training.fabric import Engine  # noqa: F401 - imported once, before forking
from tarflow.training.interrupt import Interrupted
from tarflow.training.trainer import train
from training_cases import images, run_config, splits

Report = Callable[[dict[str, Any]], None]
KINDS: dict[str, dict[str, Any]] = {
    # Micro-batches, clipping that acts, flips, dropped labels, and a sheet.
    "affine": {"accumulate": 2, "clip_norm": 0.05, "data": {"flip": True}, "label_drop": 0.3, "sample_every": 10},
    "additive": {"model": {"transform": "additive"}, "data": {"conditional": False}, "noise": "uniform"},
}


def config(kind: str, **fields: Any) -> Any:
    return run_config(**{"batch_size": 12, "steps": 10, "evaluate_every": 5, **KINDS[kind], **fields})


def data() -> Any:
    """11 held-out images: no number of ranks but 1 divides them."""
    own = splits()
    return type(own)(own.train, images(11, 1), True, ())


def in_ranks(place: Path, name: str, size: int, work: Callable[[int], Any]) -> list[int]:
    """Call `work(rank)` in `size` processes that are one job (in one without a job, for size 0); their exit statuses.

    What it returns, or the error that it raised, is left in PLACE/NAME.RANK.json.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(max(1, size)):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        if size:
            os.environ |= {
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
                **{"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            }
        try:
            found = {"value": work(rank)}
        except BaseException as error:
            found = {"error": type(error).__name__, "text": str(error), "trace": traceback.format_exc()}
            found["spoken_for"] = getattr(error, "spoken_for", None)
        found["world"] = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 0
        (place / f"{name}.{rank}.json").write_text(json.dumps(found))
        os._exit(0 if "value" in found else 1)
    return [os.waitpid(pid, 0)[1] for pid in children]


def losses(run: Path) -> list[float]:
    return [m["loss"] for m in checkpoint.read_metrics(run) if "loss" in m]


def same_losses(place: Path) -> None:
    """One process, and 2 and 3 ranks with each strategy, on each kind of model."""

    def work(names: dict[str, str]) -> Callable[[int], Any]:
        def train_all(rank: int) -> dict[str, Any]:
            seen = {}
            for name, strategy in names.items():
                kind = name.split("-")[0]
                reported: list[dict[str, Any]] = []
                result = train(config(kind, strategy=strategy), data(), place / name, report=reported.append)
                seen[name] = {"score": result.best_score, "best": result.best_step, "reports": len(reported)}
            return seen

        return train_all

    in_ranks(place, "alone", 0, work({f"{kind}-1": "auto" for kind in KINDS}))
    for size in (2, 3):
        names = {f"{kind}-{strategy}-{size}": strategy for kind in KINDS for strategy in ("ddp", "fsdp")}
        in_ranks(place, f"of-{size}", size, work(names))


class StopAt:
    """Sends this process a signal when a step is taken: `rank` gets it, the others know nothing of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def arm(self, rank: int, own: int) -> None:
        from tarflow.training import trainer as module

        real, step = module.training_batch, self.step

        def batch(*args: Any, **kwargs: Any) -> Any:
            if rank == own and args[2] == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args, **kwargs)

        module.training_batch = batch


def resumed(place: Path) -> None:
    """One run by 2 ranks of FSDP2, 3 of DDP, 3 of FSDP2 and one process, stopped by a signal to one of them."""
    kind = "affine"

    def part(strategy: str, stop: int | None, to: int = 0) -> Callable[[int], Any]:
        def work(rank: int) -> Any:
            if stop is not None:
                StopAt(stop).arm(rank, to)
            try:
                train(config(kind, strategy=strategy, save_every=100), data(), place / "run", resume=True)
            except Interrupted as stopped:
                return {"signal": stopped.signum, "step": stopped.step}
            return {}

        return work

    in_ranks(place, "whole", 0, lambda rank: train(config(kind), data(), place / "whole").steps)
    in_ranks(place, "part-1", 2, part("fsdp", 3, to=1))
    in_ranks(place, "part-2", 3, part("ddp", 5, to=2))
    in_ranks(place, "part-3", 3, part("fsdp", 7, to=0))
    in_ranks(place, "part-4", 0, part("auto", None))


SCENARIOS = {"same_losses": same_losses, "resumed": resumed}

if __name__ == "__main__":
    torch.set_num_threads(1)
    SCENARIOS[sys.argv[2]](Path(sys.argv[1]))
