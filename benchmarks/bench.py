"""One data set with its baseline, and variants of it that are trained for the baseline's processor time.

Time is shared out in steps: steps of the baseline and of what is timed take turns, and the median ratio of their
processor time says how many steps it gets for what the baseline's cost. So the figures do not depend on what else the
machine was doing. For one seed every run sees the same batches with the same noise, and all of them are scored on the
same held-out images with the same noise, with the labels given.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import official
from benchmarks.networks import Network
from benchmarks.variants import BASELINE, VARIANTS, Variant, configs
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
    seconds: float  # of the processor on a CPU, of all threads; elsewhere of the clock


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

    def step(self, variant: Variant, model: TarFlowConfig, training: TrainingConfig) -> TrainingStep[Any]:
        """The training step of a variant from the weights of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            flow = Network.build(model, variant.parts, self.splits.train.levels).to(self.device).train()
        ema = EMA(flow, training.ema_decay) if training.ema_decay else None
        return TrainingStep(flow, build_optimizer(flow, training), ema, config=training)

    def batch(self, step: int, training: TrainingConfig) -> tuple[Tensor, Any]:
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
            first = spent(lambda: baseline(*batch), self.device)
            second = spent(lambda: move(*batch), self.device)
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
        started = now(self.device)
        for step in range(steps):
            take(step)
            if step + 1 in marks:
                seconds += now(self.device) - started
                bits = self.score(flow(), CURVE_IMAGES)["bits_per_dim"]
                curve.append({"step": step + 1, "seconds": seconds, "bits_per_dim": bits})
                started = now(self.device)
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


def parser_of(benchmark: str) -> argparse.ArgumentParser:
    """The options that all benchmarks on a `Bench` have: its data, its budget, where it runs, and the file of rows."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}", allow_abbrev=False)
    parser.add_argument("--set", choices=SETUPS, required=True)
    parser.add_argument("--data", help="where the images of the set are, when not at their known place")
    parser.add_argument("--steps", type=int, help="of the baseline; the set's own when not given")
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0], help="factors of those steps' time")
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


def budget_of(row: Mapping[str, Any]) -> float:
    """The factor of the budget that a row was trained for, which rows of old do not name."""
    return float(row.get("budget", 1.0))


def write(path: Path, result: dict[str, Any]) -> None:
    """Write all rows."""
    path.write_text(json.dumps(result, indent=1) + "\n")


def _labels(labels: Tensor | None, device: torch.device) -> Tensor | None:
    return None if labels is None else labels.to(device)


def now(device: torch.device) -> float:
    """Processor time on a CPU, of all threads; elsewhere time on the clock, with the device waited for. Seconds."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize()
    return time.perf_counter()


def spent(work: Callable[[], object], device: torch.device) -> float:
    """What some work takes, in seconds of `now`."""
    started = now(device)
    work()
    return now(device) - started
