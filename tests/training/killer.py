"""Trains, is killed with SIGKILL again and again, resumes each time. A program of its own: it forks.

Usage: killer.py RUN SEED KILLS    prints one JSON object: at which step each child was found dead, and where it died.

Children are killed in turn at a random moment by their parent, and by themselves at a random one of the points at which
a file or directory that is being written whole has reached the disk and not yet taken its name.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # which the first step of an optimizer imports, for seconds; once, before forking

from tarflow import checkpoint, storage
from tarflow.training.fabric import Engine  # noqa: F401 - imported once, before forking
from tarflow.training.trainer import train
from training_cases import run_config, splits

CONFIG = run_config(steps=150, evaluate_every=7, save_every=3, keep_last=2)


def child(run: Path, die_in_write: int | None) -> int:
    """Train in a forked process; its id. With `die_in_write` n it kills itself at the n-th flush to the disk."""
    pid = os.fork()
    if pid:
        return pid
    if die_in_write is not None:
        real, calls = storage._flush, iter(range(die_in_write + 1))

        def flush(path: Path) -> None:
            if next(calls) == die_in_write:
                (run / "died-in-write").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            real(path)

        storage._flush = flush
    try:
        train(CONFIG, splits(), run, resume=True)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)


def last_step(run: Path) -> int:
    """The last step in the metrics of a run that may be writing them."""
    try:
        lines = (run / checkpoint.METRICS_FILE).read_text().split("\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines), default=0)


def main(run: Path, seed: int, kills: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    os.waitpid(child(run.with_name("whole"), None), 0)
    deaths = []
    while len(deaths) < kills:
        in_write = len(deaths) % 2 == 1
        goal = last_step(run) + rng.randrange(4, 11)
        pid = child(run, rng.randrange(2, 25) if in_write else None)
        if not in_write:  # by its progress and not by the clock, which runs differently on a busy machine
            while last_step(run) < goal and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))  # anywhere in what comes then: a step, an evaluation, a write
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            print(json.dumps({"error": f"a child ended with {status} before it could be killed", "deaths": deaths}))
            return
        marker = run / "died-in-write"
        where = "write" if marker.exists() else "anywhere"
        marker.unlink(missing_ok=True)
        latest = checkpoint.latest_checkpoint(run)
        deaths.append([latest.name if latest else None, where])
    _, status = os.waitpid(child(run, None), 0)
    print(json.dumps({"status": status, "deaths": deaths}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
