"""Two runs of a recipe in a given time: how far does each noise come, and how fast? In one process.

    python -m benchmarks.timed_training --data DIR --seconds 60 --place DIR --out FILE.json

For each noise a few steps tell the rate (and compile), and then a run begins whose schedule ends when the time does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tarflow import recipes
from tarflow.config import RunConfig
from tarflow.devices import pick_device
from tarflow.training.setup import open_data, resolve
from tarflow.training.trainer import train

EVALUATIONS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Train, and write what the runs came to after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.timed_training", description=__doc__)
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--data", help="the recipe's own when not given")
    parser.add_argument("--noises", nargs="+", default=["uniform", "gaussian"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run, its pilot included")
    parser.add_argument("--pilot", type=int, default=60, help="steps that tell the rate")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--place", type=Path, required=True, help="where the run directories are made, by their noise")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    sections = recipes.load(args.recipe)
    if args.data:
        sections["data"]["source"] = args.data
    splits = open_data(sections)
    found: dict[str, Any] = {"images": len(splits.train), "held_out_images": len(splits.held_out)}
    for noise in args.noises:
        sections["training"] |= {"noise": noise}
        config = resolve(sections, splits)
        found[noise] = timed_run(config, splits, args.place / noise, args.seconds, args.pilot, args.device)
        args.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def timed_run(config: RunConfig, splits: Any, out: Path, seconds: float, pilot: int, device: str) -> dict[str, Any]:
    """A run of so many seconds: its steps, rate and held-out scores."""
    assert config.training is not None
    started = time.perf_counter()
    training = dataclasses.replace(
        config.training, epochs=None, steps=pilot, log_every=10, sample_every=0, save_every=10**6, evaluate_every=10**6
    )
    first = dataclasses.replace(config, training=training)
    train(first, splits, out.with_name(f"{out.name}-pilot"), device=pick_device(device))
    rate = metrics(out.with_name(f"{out.name}-pilot"), "images_per_second")[-1]
    left = seconds - (time.perf_counter() - started)
    steps = max(pilot, int(0.85 * left * rate / training.batch_size))  # the rest goes to what is scored on the way
    training = dataclasses.replace(
        training, steps=steps, warmup_steps=min(200, steps // 10), evaluate_every=max(1, steps // EVALUATIONS)
    )
    started = time.perf_counter()
    result = train(dataclasses.replace(config, training=training), splits, out, device=pick_device(device))
    rates = sorted(metrics(out, "images_per_second"))
    scores = {str(row["step"]): value for row in rows(out) for key, value in row.items() if key.startswith("held_out")}
    return {
        "steps": steps,
        "batch": training.batch_size,
        "seconds": time.perf_counter() - started,
        "images_per_second": rates[len(rates) // 2],
        "held_out": scores,
        "best": result.best_score,
        "skipped_steps": result.skipped,
    }


def rows(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def metrics(out: Path, name: str) -> list[float]:
    """One of them, where it is."""
    return [row[name] for row in rows(out) if name in row]


if __name__ == "__main__":
    sys.exit(main())
