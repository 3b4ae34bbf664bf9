r"""Posteriors of simulators: `VectorFlow.fit` beside sbi's own NPE with zuko's spline flow, at equal processor time.

    python -m benchmarks.posteriors --out benchmarks/results/posteriors-cpu.json

Both learn p(θ | x) from the same simulations (`benchmarks.simulators`), as they come, but that NPE has the better of
two learning rates: the one that explained held-out rows better. `fit` gets as many steps as fill the time, and begins
again with more or fewer where that was off by a sixth. NPE trains until it stops by its own rule, or the time is up,
and has the weights that were best on its held-out rows. Both draw posteriors of the same few observations, of which
what lies outside of the prior is drawn again. A figure is the accuracy of a classifier between those and exact draws
(C2ST), 0.5 where it cannot tell them apart; beside it stands the mean of -log p of parameters of new simulations, nats.
`would_stop` says what `fit` would have lost by its patience.

Of `galaxy` the data are images, of which NPE has sbi's own `CNNEmbedding`, as it comes, and `VectorFlow` a prefix:

    python -m benchmarks.posteriors --tasks galaxy --seconds 10 --simulations 5000 --observations 2 --draws 1000 \
        --estimators VectorFlow 'VectorFlow, smaller' 'sbi NPE' --out benchmarks/results/posteriors-image-cpu.json

sbi comes with the extra `[sbi]`.
"""

from __future__ import annotations

import argparse
import copy
import functools
import logging
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import Tensor

import tarflow
from benchmarks.kept_rows import KeptRows, Row, parser, spread
from benchmarks.simulators import TASKS, Task
from benchmarks.table import aligned
from tarflow.inference.calibration import c2st
from tarflow.training.fitted import Fit

RATES = {"VectorFlow": (5e-3,), "VectorFlow, smaller": (5e-3,), "sbi NPE": (5e-4, 2e-3)}  # first what it comes with
NEW = 2000  # simulations that are scored
PATIENCE = 10  # of `fit`
PROBE = 40  # steps that are timed
OFF = 1 / 6  # of the time, that a fit may take more or less
LogProb = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[Tensor, int], Tensor]
Flow = TypeVar("Flow", bound=tarflow.SequenceFlow)


def steps_in(seconds: float, flow: tarflow.SequenceFlow, x: Tensor, c: Any, **options: Any) -> int:
    """How many steps a fit has processor time for: a short one is timed, and so is the scoring of held-out rows."""
    probe = copy.deepcopy(flow)
    few = {"held_out": (x[:10], None if c is None else c[:10]), "patience": None}
    for _ in range(2):  # what is loaded and compiled at first is no part of it
        began = time.process_time()
        probe.fit(x, c, steps=PROBE, **few, **options)
        step = (time.process_time() - began) / PROBE
    began, held_out = time.process_time(), len(x) // 10
    with torch.no_grad():
        probe.log_prob(x[:held_out], None if c is None else c[:held_out])
    scoring = 40 * (time.process_time() - began)
    return max(PROBE, round((seconds - scoring) / step))


def fitted_in(
    seconds: float, make: Callable[[], Flow], x: Tensor, c: Any, seed: int, **options: Any
) -> tuple[Flow, Fit, float]:
    """A flow after a fit that fills this processor time, what came of it, and the time; again where it was far off."""
    steps = 0
    for _ in range(2):
        torch.manual_seed(seed)
        flow = make()
        steps = steps or steps_in(seconds, flow, x, c, **options)
        began = time.process_time()
        result = flow.fit(x, c, seed=seed, steps=steps, patience=None, **options)
        spent = time.process_time() - began
        if abs(spent / seconds - 1) < OFF:
            break
        steps = round(steps * seconds / spent)
    return flow, result, spent


def would_stop(result: Fit, patience: int = PATIENCE) -> dict[str, float]:
    """The share of the steps at which a fit without patience would have stopped by it, and the nats that this costs."""
    best, waited = -float("inf"), 0
    for entry in result.curve:
        waited = 0 if entry.held_out > best else waited + 1
        best = max(best, entry.held_out)
        if waited == patience:
            return {"share": entry.step / result.steps, "lost": result.held_out_log_prob - best}
    return {"share": 1.0, "lost": 0.0}


def ours(
    task: Task, theta: Tensor, x: Tensor, seed: int, lr: float, seconds: float, **config: Any
) -> tuple[Row, LogProb, Draw]:
    """A `VectorFlow`, fitted."""
    condition = {"condition": task.condition or x.shape[1]}
    make = functools.partial(tarflow.VectorFlow, theta.shape[1], **condition | config)
    flow, result, spent = fitted_in(seconds, make, theta, x, seed, lr=lr)
    row: Row = {"seconds": spent, "steps": result.steps, "held_out": -result.held_out_log_prob}
    row["parameters"] = sum(parameter.numel() for parameter in flow.parameters())
    row |= {"would_stop": would_stop(result), "curve": [entry.held_out for entry in result.curve]}
    flow.requires_grad_(False)

    def draw(observed: Tensor, count: int) -> Tensor:
        kept: list[Tensor] = []
        while sum(map(len, kept)) < count:
            drawn = tarflow.sample(flow, count, observed.expand(count, *observed.shape), seed=seed + len(kept))
            kept.append(drawn if task.bound is None else drawn[(drawn.abs() < task.bound).all(dim=1)])
        return torch.cat(kept)[:count]

    return row, flow.log_prob, draw


def npe(task: Task, theta: Tensor, x: Tensor, seed: int, lr: float, seconds: float) -> tuple[Row, LogProb, Draw]:
    """sbi's NPE with zuko's neural spline flow, stopped by its own rule or by the time."""
    from sbi.inference import NPE  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from sbi.neural_nets import posterior_nn  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from sbi.neural_nets.embedding_nets import CNNEmbedding  # type: ignore[import-not-found, unused-ignore]
    from sbi.utils import BoxUniform  # type: ignore[import-untyped, import-not-found, unused-ignore]

    class Timed(NPE):  # type: ignore[misc, unused-ignore]
        """NPE whose training counts as converged when the time is up, too."""

        def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
            done: bool = super()._converged(epoch, stop_after_epochs)
            if not done and epoch and time.process_time() > deadline:
                self._neural_net.load_state_dict(self._best_model_state_dict)
                return True
            return done

    torch.manual_seed(seed)
    size = theta.shape[1]
    prior = (
        torch.distributions.MultivariateNormal(torch.zeros(size), 0.1 * torch.eye(size))
        if task.bound is None
        else BoxUniform(-task.bound * torch.ones(size), task.bound * torch.ones(size))
    )
    estimator_of: Any = "zuko_nsf"
    if task.condition is not None:  # an image, of which a network makes 20 numbers: sbi's own, as it comes
        embed = CNNEmbedding(tuple(x.shape[2:]))
        estimator_of = posterior_nn("zuko_nsf", embedding_net=embed)
    inference = Timed(prior, density_estimator=estimator_of, show_progress_bars=False)
    began = time.process_time()
    deadline = began + seconds
    estimator = inference.append_simulations(theta, x).train(learning_rate=lr)
    row: Row = {"seconds": time.process_time() - began, "epochs": inference.epoch}
    row["parameters"] = sum(parameter.numel() for parameter in estimator.parameters())
    row["held_out"] = float(inference.summary["best_validation_loss"][-1])
    posterior = inference.build_posterior()

    def log_prob(theta: Tensor, x: Tensor) -> Tensor:
        return estimator.log_prob(theta.unsqueeze(0), condition=x)[0].detach()

    def draw(observed: Tensor, count: int) -> Tensor:
        drawn: Tensor = posterior.sample((count,), x=observed.unsqueeze(0), show_progress_bars=False)
        return drawn

    return row, log_prob, draw


def smaller(task: Task, theta: Tensor, x: Tensor, seed: int, lr: float, seconds: float) -> tuple[Row, LogProb, Draw]:
    """A `VectorFlow` of half as many blocks, and of patches of twice the side where it is given an image."""
    config: dict[str, Any] = {"layers": (1, 1)}
    if task.condition is not None:
        *head, patch = task.condition.split(":")
        config["condition"] = ":".join([*head, str(2 * int(patch))])
    return ours(task, theta, x, seed, lr, seconds, **config)


ESTIMATORS = {"VectorFlow": ours, "VectorFlow, smaller": smaller, "sbi NPE": npe}


def measure(name: str, estimator: str, seed: int, lr: float, options: argparse.Namespace) -> Row:
    """One estimator trained on one task, its densities of new simulations, and its posteriors told from exact ones."""
    task = TASKS[name]
    theta, x = task.simulate(options.simulations, torch.Generator().manual_seed(seed))
    row, log_prob, draw = ESTIMATORS[estimator](task, theta, x, seed, lr, options.seconds)
    with torch.no_grad():
        new = task.simulate(NEW, torch.Generator().manual_seed(1000))
        row["nats"] = -float(log_prob(*new).mean())
    observations = task.simulate(options.observations, torch.Generator().manual_seed(2000))[1]
    row["c2st"] = []
    for observed in observations:
        exact = task.reference(observed, options.draws, torch.Generator().manual_seed(seed))
        row["c2st"].append(float(c2st(exact, draw(observed, options.draws), folds=3, seed=seed).mean))
    return row | {"mean_c2st": mean(row["c2st"])}


def table(rows: Sequence[Row]) -> str:
    """A line a task, a column an estimator and figure: the mean over the seeds, and the deviation of one."""
    names = [name for name in ESTIMATORS if any(row["estimator"] == name for row in rows)]
    lines = [["task", *(f"{name}, {kind}" for kind in ("C2ST", "nats") for name in names)]]
    for task in dict.fromkeys(row["task"] for row in rows):
        line = [task]
        for figure in ("mean_c2st", "nats"):
            for name in names:
                found = [row[figure] for row in chosen(rows, task, name)]
                line.append(spread(found))
        lines.append(line)
    return aligned(lines)


def chosen(rows: Sequence[Row], task: str, estimator: str) -> list[Row]:
    """For each seed the rate with the best held-out rows."""
    of_it = [row for row in rows if (row["task"], row["estimator"]) == (task, estimator)]
    seeds = dict.fromkeys(row["seed"] for row in of_it)
    return [min((row for row in of_it if row["seed"] == seed), key=lambda row: row["held_out"]) for seed in seeds]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    words = parser("posteriors", __doc__, seconds=20.0)
    words.add_argument("--simulations", type=int, default=10_000)
    words.add_argument("--observations", type=int, default=3)
    words.add_argument("--draws", type=int, default=2000, help="of a posterior, and of the exact one")
    words.add_argument("--tasks", nargs="+", choices=list(TASKS), default=[name for name in TASKS if name != "galaxy"])
    words.add_argument("--estimators", nargs="+", choices=list(ESTIMATORS), default=["VectorFlow", "sbi NPE"])
    options = words.parse_args(argv)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    setting = {name: getattr(options, name) for name in ("seconds", "simulations", "observations", "draws")}
    kept = KeptRows("posteriors", options.out, setting, "sbi", "zuko")
    for seed in options.seeds:
        for task in options.tasks:
            for estimator in options.estimators:
                for lr in RATES[estimator]:
                    key = {"task": task, "estimator": estimator, "seed": seed, "lr": lr}
                    kept.measured(key, functools.partial(measure, task, estimator, seed, lr, options))
    print(table(kept.rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
