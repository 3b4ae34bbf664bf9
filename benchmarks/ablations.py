"""Which changes of the official recipe help? Every idea beside the baseline, for the same time, on the same images.

    python -m benchmarks.ablations --set fashion-mnist --variants all --seeds 0 --out FILE.json
    python -m benchmarks.ablations --set cifar10 --data FOLDER --variants baseline 'muon 2e-3+rotary@0.5' \\
        --seeds 0 1 2 --out FILE.json

A variant is a name of `benchmarks.variants.VARIANTS`, several of them joined by `+`, and optionally `@` and a share of
the time. Time is shared out in steps: before a run, steps of the baseline and of the variant take turns, and the median
ratio of their processor time says how many steps the variant gets for what `--steps` of the baseline cost. So the
figures do not depend on what else the machine was doing. Every run sees the same batches with the same noise for one
seed, and all of them are scored on the same held-out images with the same noise, with the labels given.

The file of `--out` is written anew after each run; runs that are in it already are not done again. `--official DIR`, a
clone of apple/ml-tarflow, adds the row `official code`: their model and their optimizer on those very batches.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import official
from benchmarks.variants import BASELINE, VARIANTS, Network, Variant, configs, together
from tarflow.config import TarFlowConfig, TrainingConfig
from tarflow.data.batches import batch_indices
from tarflow.data.load import load
from tarflow.data.sets import Splits
from tarflow.evaluation.likelihood.evaluate import evaluate_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.interop import load_official
from tarflow.measure import Measure
from tarflow.model.condition import Classes
from tarflow.model.flow import TarFlow
from tarflow.training.ema import EMA
from tarflow.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from tarflow.training.step import TrainingStep, training_batch

OFFICIAL = "official code"
WARMUP = 0.1  # share of the steps; the official epoch is longer than these runs
TIMED = 10  # pairs of steps that the ratio of costs is measured on
POINTS, CURVE_IMAGES, FINAL_IMAGES = 8, 500, 2000


@dataclasses.dataclass(frozen=True)
class Setup:
    """A data set, the model that it is tried with, and the baseline's budget."""

    source: str
    model: dict[str, Any]
    batch: int
    steps: int


SETUPS = {
    "fashion-mnist": Setup(
        "fashion-mnist", {"image_size": 28, "channels": 1, "patch_size": 4, "width": 64, "layers": (2,) * 4}, 32, 600
    ),
    "cifar10": Setup("", {"image_size": 32, "channels": 3, "patch_size": 4, "width": 64, "layers": (2,) * 4}, 32, 500),
    "digits": Setup(
        "digits", {"image_size": 8, "channels": 1, "patch_size": 2, "width": 64, "layers": (2,) * 4}, 32, 600
    ),
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A flow as a run left it: averaged weights where it averages."""

    flow: TarFlow
    curve: list[dict[str, float]]
    seconds: float


class Bench:
    """One data set with its baseline, on which variants are run."""

    def __init__(self, name: str, source: str | None, steps: int | None, device: torch.device) -> None:
        self.setup = SETUPS[name]
        self.steps, self.device = steps or self.setup.steps, device
        shape = {key: self.setup.model[key] for key in ("image_size", "channels")}
        self.splits: Splits = load(source or self.setup.source, **shape)
        train, held_out = self.splits.train, self.splits.held_out
        self.pixels, self.labels = train.images.to(device), _labels(train.labels, device)
        chosen = torch.randperm(len(held_out.images), generator=torch.Generator().manual_seed(0))[:FINAL_IMAGES]
        self.held_out = held_out.images[chosen].to(device)
        self.held_out_labels = _labels(None if held_out.labels is None else held_out.labels[chosen], device)
        classes = len(train.class_names) if self.labels is not None else 0
        model = {"log_scale_bound": None} | self.setup.model  # unbounded, as the official recipe
        self.model = TarFlowConfig(**model, num_classes=classes)

    def configs(self, variant: Variant, steps: int, seed: int, **fields: Any) -> tuple[TarFlowConfig, TrainingConfig]:
        share = variant.training.get("warmup_share", WARMUP)
        rest = {key: value for key, value in variant.training.items() if key != "warmup_share"}
        variant = dataclasses.replace(variant, training=rest | fields)
        return configs(
            variant, self.model, seed=seed, steps=steps, batch_size=self.setup.batch, warmup_steps=round(share * steps)
        )

    def step(self, variant: Variant, model: TarFlowConfig, training: TrainingConfig) -> TrainingStep:
        """The training step of a variant from the weights of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            flow = Network.build(model, variant.parts).to(self.device).train()
        ema = EMA(flow, training.ema_decay) if training.ema_decay else None
        return TrainingStep(flow, build_optimizer(flow, training), ema, config=training)

    def batch(self, step: int, training: TrainingConfig) -> tuple[Tensor, Tensor | None]:
        chosen = batch_indices(len(self.pixels), training.batch_size, step, training.seed, device=self.device)
        labels = None if self.labels is None else self.labels[chosen]
        measure = training.measure(self.splits.train.levels)
        return training_batch(
            self.pixels[chosen], labels, step, config=training, condition=Classes(10), measure=measure, flip=False
        )

    def cost(self, variant: Variant, seed: int) -> float:
        """What a step of the variant costs, in steps of the baseline."""
        if variant.is_free:
            return 1.0
        return self.cost_of(self.step(variant, *self.configs(variant, 1000, seed)), seed)

    def cost_of(self, move: Callable[[Tensor, Tensor | None], object], seed: int) -> float:
        """Processor time of `move` on a batch over that of a step of the baseline, the median of their pairs."""
        model, training = self.configs(VARIANTS[BASELINE], 1000, seed)
        batch, ratios = self.batch(0, training), []
        baseline = self.step(VARIANTS[BASELINE], model, training)
        for count in range(TIMED + 2):
            first = _seconds(lambda: baseline(*batch), self.device)
            second = _seconds(lambda: move(*batch), self.device)
            if count >= 2:  # the first ones make the moments
                ratios.append(second / first)
        return statistics.median(ratios)

    def train(self, variant: Variant, steps: int, seed: int, **fields: Any) -> Trained:
        """Train a variant for so many steps; `fields` of the training config come last."""
        model, training = self.configs(variant, steps, seed, **fields)
        move = self.step(variant, model, training)
        warmup = training.warmup_steps or 0

        def take(step: int) -> None:
            set_learning_rate(move.optimizer, learning_rate(step, config=training, steps=steps, warmup=warmup))
            move(*self.batch(step, training))

        return self.run(take, steps, lambda: move.flow if move.ema is None else move.ema.flow)

    def train_official(self, clone: Path, steps: int, seed: int) -> Trained:
        """Their model and optimizer, as their train.py sets them up, on the batches of the baseline."""
        baseline = VARIANTS[BASELINE]
        model, training = self.configs(baseline, steps, seed)
        flow = self.step(baseline, model, training).flow
        theirs: Any = official.build(official.OFFICIAL, official.load_module(official.OFFICIAL, clone), flow).train()
        for parameter in theirs.parameters():
            parameter.data = parameter.data.clone()
        optimizer = torch.optim.AdamW(
            theirs.parameters(), lr=training.lr, betas=training.betas, weight_decay=training.weight_decay
        )
        warmup = training.warmup_steps or 0

        def take(step: int) -> None:
            set_learning_rate(optimizer, learning_rate(step, config=training, steps=steps, warmup=warmup))
            optimizer.zero_grad()
            z, _, logdets = theirs(*self.batch(step, training))
            theirs.get_loss(z, logdets).backward()
            optimizer.step()

        return self.run(take, steps, lambda: load_official(theirs.state_dict(), model.image_size).to(self.device))

    def run(self, take: Callable[[int], None], steps: int, flow: Callable[[], TarFlow]) -> Trained:
        """Take so many steps, and score what `flow` gives on the way."""
        curve, seconds = [], 0.0
        marks = {round(steps * (k + 1) / POINTS) for k in range(POINTS)}
        started = time.perf_counter()
        for step in range(steps):
            take(step)
            if step + 1 in marks:
                seconds += time.perf_counter() - started
                curve.append({"step": step + 1, "bits_per_dim": self.score(flow(), CURVE_IMAGES)["bits_per_dim"]})
                started = time.perf_counter()
        return Trained(flow(), curve, seconds)

    def score(self, flow: TarFlow, images: int) -> dict[str, float]:
        """Bits/dim of the first held-out images, in the noise that is the same for everything that is scored."""
        labels = None if self.held_out_labels is None else self.held_out_labels[:images]
        found = evaluate_likelihood(
            flow.eval(),
            self.held_out[:images],
            labels,
            scoring=Scoring(Measure(self.splits.train.levels), draws=1),
        )
        flow.train()
        return {"bits_per_dim": found.mean, "standard_error": found.standard_error}


def run(bench: Bench, name: str, seed: int, clone: Path | None) -> dict[str, Any]:
    """One row: a variant at one seed."""
    names, _, share = name.partition("@")
    variant = together(names.split("+")) if names != OFFICIAL else VARIANTS[BASELINE]
    cost = bench.cost(variant, seed)  # of the official code: 1, so that it takes the baseline's steps
    steps = max(POINTS, round(bench.steps * float(share or 1) / cost))
    if names == OFFICIAL:
        assert clone is not None
        trained = bench.train_official(clone, steps, seed)
    else:
        trained = bench.train(variant, steps, seed)
    final = bench.score(trained.flow, FINAL_IMAGES)
    row = {"variant": name, "group": variant.group, "seed": seed, "cost": cost, "steps": steps}
    row |= {key: value if math.isfinite(value) else None for key, value in final.items()}
    return row | {"seconds": trained.seconds, "curve": trained.curve}


def main(argv: Sequence[str]) -> int:
    """Run what is asked for; 2 after bad input, with one line."""
    parser = parser_of("ablations")
    parser.add_argument("--variants", nargs="+", default=["all"], help="names, joined by +, with @share of the time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--official", type=Path, help="a clone of apple/ml-tarflow, for the row 'official code'")
    options = parser.parse_args(argv)
    wanted = list(VARIANTS) if options.variants == ["all"] else options.variants
    known = {*VARIANTS, OFFICIAL}
    for name in wanted:
        unknown = [part for part in name.partition("@")[0].split("+") if part not in known]
        if unknown:
            print(f"--variants: expected names among {', '.join(sorted(known))}, got {unknown[0]!r}", file=sys.stderr)
            return 2
    if OFFICIAL in wanted and options.official is None:
        print(f"--official: missing; {OFFICIAL!r} needs a clone of apple/ml-tarflow", file=sys.stderr)
        return 2
    try:
        bench = open_bench(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    result = read(options.out) or describe(bench, options)
    for seed in options.seeds:
        for name in wanted:
            if any(row["variant"] == name and row["seed"] == seed for row in result["rows"]):
                continue
            row = run(bench, name, seed, options.official)
            result["rows"].append(row)
            write(options.out, result)
            shown = {key: row[key] for key in ("variant", "seed", "cost", "steps", "bits_per_dim", "seconds")}
            print(json.dumps(shown), flush=True)
    return 0


def parser_of(benchmark: str) -> argparse.ArgumentParser:
    """The options that all benchmarks on a `Bench` have: its data, its budget, where it runs, and the file of rows."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}", allow_abbrev=False)
    parser.add_argument("--set", choices=SETUPS, required=True)
    parser.add_argument("--data", help="where the images of the set are, when not at their known place")
    parser.add_argument("--steps", type=int, help="of the baseline; the set's own when not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    return parser


def open_bench(options: argparse.Namespace) -> Bench:
    """The bench that options of `parser_of` ask for. Raises OSError or ValueError, as opening images does."""
    torch.set_num_threads(options.threads)
    return Bench(options.set, options.data, options.steps, torch.device(options.device))


def describe(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """What was run where, without a path of the machine."""
    images = {"train": len(bench.pixels), "held_out_scored": len(bench.held_out)}
    return {
        "set": options.set,
        "images": images,
        "model": dataclasses.asdict(bench.model),
        "batch": bench.setup.batch,
        "steps_of_the_baseline": bench.steps,
        "device": f"{options.device}, {options.threads} thread(s) of a shared machine with {os.cpu_count()} cores",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rows": [],
    }


def read(path: Path) -> dict[str, Any] | None:
    """What a run before this one left, or None."""
    return json.loads(path.read_text()) if path.exists() else None


def write(path: Path, result: dict[str, Any]) -> None:
    """Write all rows."""
    path.write_text(json.dumps(result, indent=1) + "\n")


def _labels(labels: Tensor | None, device: torch.device) -> Tensor | None:
    return None if labels is None else labels.to(device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Processor time on a CPU with one thread; elsewhere time on the clock, with the device waited for."""
    if device.type == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.accelerator.synchronize()
    started = time.perf_counter()
    work()
    torch.accelerator.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
