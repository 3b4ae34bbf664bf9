"""One variant, or one recipe, for a long time: a run directory, and the curve of its held-out bits/dim.

    python -m benchmarks.long_run --set fashion-mnist --variant 'muon 8e-3+8 blocks of 1' --minutes 120 \\
        --run RUN --out FILE.json
    python -m benchmarks.long_run --recipe best --data fashion-mnist --fields noise='"uniform"' batch_size=64 \\
        --minutes 120 --run RUN --out FILE.json

Minutes are those of the processor, of all threads, which is what a few steps of the model itself take on the machine
as it is; they become a number of steps, of which the learning rate's schedule goes through all. `tarflow`'s own trainer
takes them in the directory of `--run`, which every command of tarflow opens afterwards. The same command again goes on
where a run was interrupted or killed, on a CPU bit for bit. `--fields` changes fields of the model, the data and the
training, in the syntax of TOML. The curve is of `--images` held-out images, and its seconds are those of training
alone: scoring is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import SETUPS, WARMUP, now, read, spent, write
from benchmarks.variants import BASE, VARIANTS, together
from tarflow import recipes
from tarflow.config import ConfigError, RunConfig, to_dict
from tarflow.data.feed import Feed
from tarflow.data.load import Splits
from tarflow.training.build import build_step
from tarflow.training.engine import Engine
from tarflow.training.interrupt import Interrupted
from tarflow.training.setup import check_sections, open_data, resolve
from tarflow.training.step import training_batch
from tarflow.training.trainer import train

POINTS = 32  # of the curve
START = {"step": 0, "seconds": 0.0}
PILOT, SETTLING = 12, 2  # steps that tell the pace, and those before them, which make the optimizer's moments


def sections_of(name: str, variant: str, source: str | None) -> tuple[dict[str, dict[str, Any]], float]:
    """What a variant of `benchmarks.ablations` is as a recipe, and its share of warm-up. Raises ConfigError."""
    names = variant.split("+")
    unknown = [part for part in names if part not in VARIANTS or VARIANTS[part].parts]
    if unknown:
        raise ConfigError(f"--variant: expected names of benchmarks.variants that are configs, got {unknown[0]!r}")
    chosen, setup = together(names), SETUPS[name]
    # The machine has the memory: nothing has to be computed twice.
    training = {**BASE, "batch_size": setup.batch, "checkpoint_activations": "nothing", **chosen.training}
    share = training.pop("warmup_share", WARMUP)
    model = {"log_scale_bound": "none", **setup.model, **chosen.model}
    return {"model": model, "data": {"source": source or setup.source}, "training": training}, share


def fields_of(words: Sequence[str]) -> dict[str, Any]:
    """The fields that `--fields` sets. Raises ConfigError where a word is no NAME=VALUE of TOML."""
    found: dict[str, Any] = {}
    for word in words:
        try:
            found |= tomllib.loads(word)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"--fields: expected NAME=VALUE as in a recipe, got {word!r}: {error}") from None
    return found


def pace(config: RunConfig, splits: Splits, device: torch.device) -> float:
    """Seconds of `now` that a training step of a run takes: the median of a few."""
    training, data = config.training, config.data
    assert training is not None and data is not None
    step = build_step(config, Engine(training, device), None)
    order: dict[str, Any] = {"batch_size": training.batch_size, "seed": training.seed}
    feed = Feed(splits.train, condition=config.model.conditioned_on, device=device, **order)

    def take(count: int) -> None:
        pixels, labels = feed.batch(count)
        condition, measure = step.flow.conditions, config.measure
        step(
            *training_batch(
                pixels, labels, count, config=training, measure=measure, condition=condition, flip=data.flip
            )
        )

    times = [spent(lambda count=count: take(count), device) for count in range(SETTLING + PILOT)]  # type: ignore[misc]
    feed.close()
    return statistics.median(times[SETTLING:])


class Curve:
    """What a training reports, as points (step, seconds, bits/dim), in a file that is written at each of them.

    A run that goes on was saved at a step that the file may not know, if it was killed between the two: the seconds
    until there are then those of the point before, and those of the steps in between at the planned pace.
    """

    def __init__(self, result: dict[str, Any], path: Path, device: torch.device) -> None:
        self.result, self.path, self.device = result, path, device
        self.step, self.seconds, self.mark = 0, 0.0, 0.0

    def begin(self, step: int) -> None:
        """The training goes on after so many steps."""
        points = [point for point in (*self.result["curve"], self.result["saved"]) if point["step"] <= step]
        last = max(points, key=lambda point: point["step"], default=START)
        self.result["curve"] = [point for point in self.result["curve"] if point["step"] <= step]
        self.seconds = last["seconds"] + (step - last["step"]) * self.result["seconds_per_step"]

    def __call__(self, metrics: dict[str, Any]) -> None:
        """A step was taken, or the model was scored after it."""
        if "total" in metrics:
            if self.step == 0:
                self.begin(metrics["step"] - 1)
                self.seconds += self.result["seconds_per_step"]  # of the first one no more is known
            else:
                self.seconds += now(self.device) - self.mark
            self.step = metrics["step"]
        bits = [value for name, value in metrics.items() if name.startswith("held_out_")]
        if bits:
            point = {"step": self.step, "seconds": self.seconds, "bits_per_dim": bits[0]}
            self.result["curve"].append(point | {"standard_error": metrics["standard_error"]})
            self.keep()
        self.mark = now(self.device)

    def keep(self) -> None:
        """Write the file."""
        self.result["saved"] = {"step": self.step, "seconds": self.seconds}
        write(self.path, self.result)


def plan(options: argparse.Namespace, known: dict[str, Any] | None) -> tuple[RunConfig, Splits, dict[str, Any]]:
    """The config of the run, its images, and its file: `known` from when it began, or new. Raises ConfigError."""
    if options.recipe is not None:
        sections, share = recipes.load(options.recipe), WARMUP
        if options.data is not None:
            sections = recipes.with_fields(sections, {"source": options.data})
    else:
        sections, share = sections_of(options.set, options.variant, options.data)
    fields = {"steps": 1, "warmup_steps": 0, "sample_every": 0, "evaluate_images": options.images, "log_every": 50}
    sections = recipes.with_fields(sections, fields | fields_of(options.fields))
    check_sections(sections)
    splits, device = open_data(sections), torch.device(options.device)
    name = options.recipe or f"{options.set}: {options.variant}"
    asked = {"name": name, "minutes": options.minutes, "fields": fields_of(options.fields)}
    if known is None:
        step = pace(resolve(sections, splits), splits, device)
        where = f"{device}, {options.threads} thread(s) of a shared machine with {os.cpu_count()} cores"
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        known = {"steps": max(POINTS, round(60 * options.minutes / step)), "seconds_per_step": step}
        known = asked | known | {"device": where, "versions": versions, "saved": START, "curve": []}
    for field, value in asked.items():
        if known[field] != value:
            raise ConfigError(f"{options.out}: {field}: the run there has {known[field]!r}, got {value!r}")
    steps = known["steps"]
    every = max(1, steps // POINTS)
    times = {"steps": steps, "warmup_steps": round(share * steps), "evaluate_every": every, "save_every": every}
    config = resolve(recipes.with_fields(sections, times), splits)
    stored = to_dict(config)
    return config, splits, known | {"config": {section: stored[section] for section in ("model", "training")}}


def main(argv: Sequence[str]) -> int:
    """Train to the end of the minutes; 2 after bad input, with one line, and 130 where a signal ended it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_run", allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--variant", help="names of benchmarks.variants, joined by +; needs --set")
    what.add_argument("--recipe", help="a recipe by its name, or a .toml file")
    parser.add_argument("--set", choices=SETUPS, help="whose model and batch the variant changes")
    parser.add_argument("--data", help="where the images are, when not at their known place, or not the recipe's")
    parser.add_argument("--fields", nargs="+", default=[], metavar="NAME=VALUE", help="as in a recipe")
    parser.add_argument("--minutes", type=float, required=True, help="of the processor")
    parser.add_argument("--images", type=int, default=2000, help="held-out images that a point of the curve is of")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--run", type=Path, required=True, help="the run directory")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    options = parser.parse_args(argv)
    if (options.variant is None) != (options.set is None):
        print("--set: expected with --variant, and not with --recipe", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    try:
        known = read(options.out)
        config, splits, result = plan(options, known)
        write(options.out, result)
        curve = Curve(result, options.out, torch.device(options.device))
        train(config, splits, options.run, resume=known is not None, device=curve.device, report=curve)
    except Interrupted as interrupted:
        curve.keep()
        print(f"{options.run}: {interrupted}", file=sys.stderr)
        return 130
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    curve.keep()
    print(json.dumps(result["curve"][-1]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
