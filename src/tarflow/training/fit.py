"""Fitting a flow to rows in memory in one call, stopped where held-out rows are not explained any better.

It moves the weights by the step, the optimizer and the averaged weights of a run, in the same order of batches. It does
not go through `trainer`, whose loop is about a directory: its lock, its checkpoints, its sheets, and the processes that
share it. What is fitted here takes seconds to minutes, and leaves nothing but the flow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tarflow.config import ConfigError, TrainingConfig, from_dict
from tarflow.data.batches import batch_indices
from tarflow.devices import without_autocast
from tarflow.fields import integer
from tarflow.model.sequence import SequenceFlow
from tarflow.seeding import seeded_generator
from tarflow.training.ema import EMA
from tarflow.training.fitted import Evaluation, Fit
from tarflow.training.monitoring import measure_base_variance, one_pass
from tarflow.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from tarflow.training.rows import Rows, split_rows
from tarflow.training.step import TrainingStep

EPOCHS, LEAST_STEPS, MOST_STEPS = 100, 1000, 4000
"""Where no number of steps is given: passes over the rows, and the fewest and the most steps that these may come to."""
HELD_OUT = 0.1  # of the rows, where nothing else is said
EVALUATIONS = 40  # of held-out rows in a whole fit
SKIPS_ALLOWED = 100  # steps in a row without a finite gradient: no later batch will mend the weights

DEFAULTS: dict[str, Any] = {
    "weight_decay": 1e-4,
    "betas": (0.9, 0.95),
    "clip_norm": 1.0,
    "ema_decay": 0.999,
    "label_drop": 0.0,
    "final_lr": 0.0,
    "warmup_steps": 50,
}
FIELDS = (*DEFAULTS, "optimizer", "muon_lr", "schedule", "accumulate")
"""Fields of `TrainingConfig` that mean something for rows in memory, besides those that are arguments."""

Metrics: TypeAlias = dict[str, float]


class FitError(RuntimeError):
    """No weights were found under which held-out rows have a finite likelihood."""


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    flow: SequenceFlow,
    x: Tensor,
    c: Any = None,
    *,
    mask: Tensor | None = None,
    held_out: Any = HELD_OUT,
    seed: int = 0,
    steps: int | None = None,
    patience: int | None = 10,
    batch_size: int = 256,
    lr: float = 5e-3,
    preprocess: bool = True,
    progress: bool | Callable[[Metrics], None] = False,
    **fields: Any,
) -> Fit:
    """Fit a flow to rows; it has the averaged weights of the best held-out likelihood afterwards.

    It starts from the weights that the flow has. On a CPU, with the same number of threads, the same arguments give the
    same weights bit for bit. However it ends, by an error or Ctrl-C too, the flow has the best weights so far: those
    that it came with until held-out rows were scored once.

    Args:
        flow: any flow, on any device; it keeps its mode (`train` or `eval`).
        x: (N, …) events, floating. c: the values of its condition, a row for each; None without. mask: (N, T), which
            tokens of sequences are there.
        held_out: the share of the rows that is held out, drawn by `seed`; or other rows, x, (x, c) or (x, c, mask).
        seed: of that draw, the order of batches and the labels that are dropped.
        steps: of the optimizer, at most; None is `EPOCHS` passes, and 1000 to 4000.
        patience: held-out evaluations, of which a whole fit has `EVALUATIONS`, without a better one before it stops;
            None never does.
        batch_size: rows a step; no more than there are.
        lr: highest learning rate; it falls to zero along a cosine.
        preprocess: fit what standardises events and conditions to the rows; False keeps it, as for going on.
        progress: True draws a bar on stderr; a function is called with the metrics of every evaluation.
        fields: `optimizer`, `schedule`, `weight_decay`, `clip_norm`, `ema_decay`, `label_drop`, … (`FIELDS`), as of
            `tarflow.train`.

    Raises:
        ValueError: rows that do not fit the flow, are not finite, too few, or the same in all of x; fields that do not
            exist or contradict each other (`ConfigError`).
        FitError: no held-out likelihood, or no gradient for 100 steps in a row, was finite.

    >>> import torch, tarflow
    >>> config = tarflow.SequenceConfig(tokens=3, dim=1, width=64, layers=(1, 1), start_token=True)
    >>> flow = tarflow.SequenceFlow(config)
    >>> x = torch.randn(500, 3, 1) * 0.1 + 2
    >>> before = flow.log_prob(x).mean()
    >>> result = flow.fit(x, steps=20, lr=3e-3)
    >>> result.rows, bool(flow.log_prob(x).mean() > before)
    (450, True)
    """
    if flow.in_inference_mode:
        raise ValueError("flow: made in torch.inference_mode, so that no gradient flows; make it outside")
    rows, others = split_rows(Rows.checked(flow, x, c, mask=mask), held_out, integer("seed", seed))
    config = _config(len(rows), steps, batch_size=batch_size, lr=lr, seed=seed, fields=fields)
    patience = None if patience is None else integer("patience", patience, 1)
    with (
        contextlib.closing(_Kept(flow)) as kept,
        without_autocast(flow.device),
        _reporter(progress, config) as report,
    ):
        if preprocess:
            _standardise(rows)
        return _Fitting(rows, others, config, kept, report).run(patience)


def _config(rows: int, steps: int | None, *, batch_size: int, lr: float, seed: int, fields: dict[str, Any]) -> Any:
    """The arguments as the config of a training; ConfigError naming the field that is wrong."""
    for name in fields:
        if name not in FIELDS:
            raise ConfigError(f"{name}: no such field; known: {', '.join(FIELDS)}")
    size = min(integer("batch_size", batch_size, 1), rows)
    size -= size % integer("accumulate", fields.get("accumulate", 1), 1)  # equal parts
    if steps is None:
        steps = min(max(LEAST_STEPS, math.ceil(EPOCHS * rows / max(size, 1))), MOST_STEPS)
    values = {"noise": "uniform", "steps": steps, "batch_size": size, "lr": lr, "seed": seed}
    return from_dict(TrainingConfig, DEFAULTS | values | fields)


class _Kept:
    """The weights that a flow is to have when its fit ends, however that comes: at first its own."""

    def __init__(self, flow: SequenceFlow) -> None:
        self.flow, self.training = flow, flow.training
        self.weights = {name: tensor.clone() for name, tensor in flow.state_dict().items()}

    def keep(self, flow: SequenceFlow) -> None:
        """Those of another flow, a copy of which was trained."""
        for name, tensor in flow.state_dict().items():
            self.weights[name].copy_(tensor)

    def close(self) -> None:
        """Put them into the flow, which is left in its mode and without gradients."""
        self.flow.load_state_dict(self.weights)
        self.flow.train(self.training).zero_grad(set_to_none=True)


def _standardise(rows: Rows) -> None:
    """Fit what a flow does to its events and conditions before the network sees them, where it does anything."""
    rows.flow.event.fit(rows.x, mask=rows.mask)
    rows.flow.conditions.fit(rows.c)


class _Fitting:
    """One fit in progress."""

    def __init__(
        self,
        rows: Rows,
        others: Rows,
        config: TrainingConfig,
        kept: _Kept,
        report: Callable[[Metrics], None],
    ) -> None:
        assert config.steps is not None
        self.rows, self.others, self.config, self.kept, self.report = rows, others, config, kept, report
        self.flow = flow = rows.flow
        self.steps = config.steps
        self.every = max(1, round(self.steps / EVALUATIONS))
        self.ema = EMA(flow, config.ema_decay)
        self.optimizer = build_optimizer(flow, config)
        self.step = TrainingStep(flow.train(), self.optimizer, self.ema, config=config)
        self.curve: list[Evaluation] = []
        self.best, self.best_step, self.error = -math.inf, 0, math.nan

    def run(self, patience: int | None) -> Fit:
        """Take steps until all are taken, or `patience` evaluations have brought nothing."""
        began = time.monotonic()
        stopped, waited, step = "steps", 0, 0
        seen = torch.zeros((), device=self.flow.device, dtype=torch.float64)
        for step in range(1, self.steps + 1):
            seen += self.take(step - 1)
            if step % self.every and step < self.steps:
                continue
            count = (step - 1) % self.every + 1
            waited = 0 if self.evaluate(step, float(seen) / count) else waited + 1
            seen.zero_()
            if waited == patience and step < self.steps:
                stopped = "patience"
                break
        if not self.best_step:
            raise FitError("no held-out likelihood was finite; lower the learning rate, or bound the log-scale")
        if self.flow.base.follows:
            self.settle()
        return Fit(
            self.best,
            self.error,
            self.best_step,
            step,
            stopped,
            tuple(self.curve),
            int(self.step.skipped),
            len(self.rows),
            len(self.others),
            time.monotonic() - began,
        )

    def take(self, step: int) -> Tensor:
        """One step of the optimizer; the mean log-likelihood of its batch before it, 0-d."""
        config, device = self.config, self.flow.device
        index = batch_indices(len(self.rows), config.batch_size, step, config.seed, device=device)
        batch = self.rows.choose(index)
        c = batch.c
        if c is not None and config.label_drop:
            generator = seeded_generator(config.seed, "fit", step, device=device)
            shape = (len(index), *self.flow.conditions.drops)
            drawn = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
            c = self.flow.conditions.drop(c, drawn < config.label_drop)
        warmup = min(config.warmup_steps or 0, self.steps // 10)
        set_learning_rate(self.optimizer, learning_rate(step, config=config, steps=self.steps, warmup=warmup))
        return self.step(batch.x, c, batch.mask)["log_prob"]

    def evaluate(self, step: int, train: float) -> bool:
        """Score held-out rows under the averaged weights; keep these where they are the best so far."""
        if int(self.step.longest_row) >= SKIPS_ALLOWED:
            raise FitError(f"no finite gradient in {SKIPS_ALLOWED} steps in a row before step {step}; lower lr")
        mean, error = score_rows(self.ema.flow, self.others)
        self.curve.append(Evaluation(step, mean, train))
        better = mean > self.best
        if better:
            self.best, self.best_step, self.error = mean, step, error
            self.kept.keep(self.ema.flow)
        self.report({"step": step, "total": self.steps, "held_out": mean, "train": train, "best": self.best})
        return better

    def settle(self) -> None:
        """Measure the variance of a base that follows over all rows, for the best weights, and score these again."""
        flow, size = self.ema.flow, self.config.batch_size
        flow.load_state_dict(self.kept.weights)
        chosen = (
            self.rows.choose(batch_indices(len(self.rows), size, step, self.config.seed))
            for step in one_pass(len(self.rows), size, 0)
        )
        measure_base_variance(flow, ((part.x, part.c) for part in chosen))
        self.kept.keep(flow)
        self.best, self.error = score_rows(flow, self.others)


def score_rows(flow: SequenceFlow, rows: Rows) -> tuple[float, float]:
    """The mean log-likelihood of rows under a flow, nats, and the standard error of that mean (NaN of one row)."""
    found = dataclasses.replace(rows, flow=flow).log_prob()
    return float(found.mean()), float(found.std() / len(found) ** 0.5) if len(found) > 1 else math.nan


@contextlib.contextmanager
def _reporter(
    progress: bool | Callable[[Metrics], None], config: TrainingConfig
) -> Iterator[Callable[[Metrics], None]]:
    """What evaluations are reported to: nobody, a function of the caller's, or a bar on stderr."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda metrics: None
    else:
        from rich.console import Console  # here: few calls draw, and the training step needs nothing but torch
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("fitting", total=config.steps)

            def report(metrics: Metrics) -> None:
                said = f"held-out {metrics['held_out']:.3f} nats, best {metrics['best']:.3f}"
                bar.update(task, completed=metrics["step"], description=said)

            yield report
