"""The training loop: steps, held-out evaluations, sample sheets, checkpoints, and an orderly end at a signal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tarflow import checkpoint
from tarflow.config import ConfigError, RunConfig, to_dict
from tarflow.data.feed import Feed
from tarflow.data.load import Splits
from tarflow.devices import without_autocast
from tarflow.model.condition import Value
from tarflow.model.flow import TarFlow
from tarflow.model.saving import WEIGHTS_FILE, load_weights
from tarflow.tensor_files import read_tensors
from tarflow.training.build import build_step
from tarflow.training.directory import RunDirectory, check_state
from tarflow.training.engine import Engine, check_device
from tarflow.training.interrupt import Interrupted, Stop, collect_signals
from tarflow.training.logs import Logs
from tarflow.training.monitoring import draw_sheet, one_pass, score_held_out, settle
from tarflow.training.optimizer import learning_rate, set_learning_rate
from tarflow.training.sharding import assembled, gathered, split_moments, split_weights
from tarflow.training.step import training_batch

SKIPS_ALLOWED = 100  # steps in a row without a finite gradient: no later batch will mend the weights

Report = Callable[[dict[str, Any]], None]


class Diverged(RuntimeError):
    """No finite gradient for `SKIPS_ALLOWED` steps in a row, or no finite likelihood at all."""


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run came to. The score is the held-out one of the best averaged weights, in `measure`."""

    steps: int
    skipped: int
    best_step: int
    best_score: float
    seconds: float


@torch.inference_mode(False)  # whatever mode the caller is in: this also lets gradients flow
def train(
    config: RunConfig,
    splits: Splits,
    out: str | Path,
    *,
    resume: bool = False,
    init: TarFlow | None = None,
    device: torch.device | str = "cpu",
    report: Report | None = None,
) -> TrainingResult:
    """Train a flow, and leave a run directory (see `tarflow.checkpoint`).

    Args:
        config: from `tarflow.training.setup.resolve`.
        splits: training and held-out images.
        out: the run directory; must not hold a run unless `resume`.
        resume: go on from the newest sound checkpoint in `out` as if nothing had happened: on a CPU, with the same
            number of threads, bit for bit; from the start where there is none yet.
        init: weights to start from (see `start_from`).
        report: called after every step with its number, and with the metrics where they are logged, and with those of
            every evaluation and sample sheet. Of several processes (`torchrun`), which all call this with the same
            arguments and return the same result, that of rank 0 is.

    Raises:
        FileExistsError: `out` holds a run and `resume` was not asked for.
        InUse: another process trains in `out`. Lost: it was moved, removed or replaced since (`tarflow.locks`).
        ConfigError: the config differs from that of the run to resume, or the training images do.
        Interrupted: a signal came (see `tarflow.training.interrupt`); everything is saved.
        Diverged: the loss is not finite any more; seen where metrics are logged or a checkpoint is written.
        RankLost: another process is gone. FirstRankFailed: rank 0 raised one of the others.
    """
    training = config.training
    assert training is not None
    out = Path(out)
    checkpoint.check_free(out, resume=resume)
    engine = Engine(training, torch.device(device))  # here the ranks meet; none has written anything before
    ranks = engine.ranks
    # The signals outside: torchrun sends one to those that are left when a rank is lost.
    with (
        collect_signals() as stop,
        contextlib.closing(RunDirectory(out, ranks)) as directory,
        without_autocast(engine.device),  # the config says the precision
    ):
        with ranks.connection():
            ranks.check_same("options", to_dict(config))
            ranks.check_same("data", (splits.train.digest(), splits.held_out.digest()))
            ranks.on_first(lambda: check_device(training, ranks, engine.device))
            config, latest = directory.open(config, splits, resume=resume)
            trainer = Trainer(config, splits, directory, engine, report or (lambda metrics: None), init)
            if latest is not None:
                trainer.restore(checkpoint.load_state(latest), latest)
            directory.begin(config, splits, latest, trainer.step, trainer.best_step)
        trainer.logs = Logs(training.log if ranks.first else (), out, config)
        with contextlib.closing(trainer.logs), contextlib.closing(trainer.feed), ranks.connection(), engine.precision():
            return trainer.run(stop)


class Trainer:
    """One run in progress. Everything that changes from step to step is in `state()`."""

    def __init__(
        self,
        config: RunConfig,
        splits: Splits,
        directory: RunDirectory,
        engine: Engine,
        report: Report,
        init: TarFlow | None,
    ) -> None:
        assert config.training is not None and config.data is not None
        self.config, self.training, self.data = config, config.training, config.data
        self.measure = config.measure
        self.directory, self.out, self.engine, self.ranks = directory, directory.path, engine, engine.ranks
        self.report: Report = report if self.ranks.first else lambda metrics: None
        self.logs = Logs((), directory.path, config)
        self.fingerprint = splits.train.digest()
        self.rows = self.ranks.share(self.training.batch_size)
        self.feed = Feed(
            splits.train,
            batch_size=self.training.batch_size,
            seed=self.training.seed,
            condition=config.model.conditioned_on,
            device=engine.device,
            rows=self.rows,
        )
        self.held_out = splits.held_out.choice(self.training.evaluate_images, self.training.seed)
        self.total, self.warmup = self.training.step_counts(len(splits.train))

        given = splits.train.values(config.model.conditioned_on)
        self.training_step = step = build_step(config, engine, init, given)
        assert step.ema is not None
        self.flow, self.ema, self.optimizer = step.flow, step.ema, step.optimizer

        self.step = 0
        self.best_step: int | None = None
        self.best_score = float("inf")
        self.seconds = 0.0

    # --- the loop --------------------------------------------------------------------------------------------------

    def run(self, stop: Stop) -> TrainingResult:
        """Train to the last step, or until `stop` says that a signal came to one of the ranks."""
        started = time.monotonic() - self.seconds
        mark = (self.step, self.seconds)
        while self.step < self.total:
            measured = self.take_step()
            last = self.step == self.total
            logs = self.step % self.training.log_every == 0 or last
            metrics: dict[str, Any] = {"step": self.step}
            if logs:
                metrics = self.read(measured)
                self.seconds = time.monotonic() - started  # after reading, which waits for the device
                steps, seconds = self.step - mark[0], self.seconds - mark[1]
                mark = (self.step, self.seconds)
                metrics["images_per_second"] = steps * self.training.batch_size / max(seconds, 1e-9)
                metrics["skipped"] = int(self.training_step.skipped)
                metrics["seconds"] = self.seconds
                self.append(metrics)
            self.report(metrics | {"total": self.total})
            evaluates = self.step % self.training.evaluate_every == 0 or last
            draws = self.training.sample_every > 0 and (self.step % self.training.sample_every == 0 or last)
            better = evaluates and self.evaluate()
            if draws:
                self.draw_samples()
            signum = self.ranks.largest(stop())  # to one of the ranks, at whichever step it was
            saves = better or signum > 0 or last or self.step % self.training.save_every == 0
            if saves:
                self.check_progress()
                self.seconds = time.monotonic() - started
                self.save()
            if evaluates or draws or saves:
                mark = (self.step, time.monotonic() - started)  # the rate is that of the steps alone
            if signum and not last:
                raise Interrupted(signum, self.step)
        if self.best_step is None:
            raise Diverged("no held-out evaluation was finite; lower the learning rate, or bound the log-scale")
        if self.flow.base.follows:
            batches = map(self.seen, one_pass(len(self.feed), self.training.batch_size, self.total))
            best = settle(self.out, batches, self.engine.device, self.training.accumulate, self.ranks)
            self.best_score = self.scored(best, "settled_")
        skipped = int(self.training_step.skipped)
        return TrainingResult(self.total, skipped, self.best_step, self.best_score, self.seconds)

    def take_step(self) -> dict[str, Any]:
        """One optimizer step, or a skipped one where it is not finite; what was measured, as tensors on the device."""
        x, y = self.seen(self.step)
        rate = learning_rate(self.step, config=self.training, steps=self.total, warmup=self.warmup)
        set_learning_rate(self.optimizer, rate)
        measured = self.training_step(x, y)
        self.step += 1
        return measured | {"lr": rate}

    def seen(self, step: int) -> tuple[torch.Tensor, Value]:
        """This rank's rows of a step's batch, as the model sees them."""
        data, (pixels, labels) = self.data, self.feed.batch(step)
        how: dict[str, Any] = {"config": self.training, "measure": self.measure, "condition": self.flow.conditions}
        how |= {"flip": data.flip, "crop_padding": data.crop_padding, "rows": self.rows}
        how["size"] = self.config.model.image_shape
        return training_batch(pixels, labels, step, **how)

    def read(self, measured: dict[str, Any]) -> dict[str, Any]:
        """The metrics of a step as numbers, for which the host waits. Raises Diverged where it is time to."""
        self.check_progress()
        return {
            "step": self.step,
            "loss": float(measured["loss"]),
            self.measure.figure: self.measure.bits_per_dim(float(measured["log_prob"]), self.config.model.num_dims),
            "lr": measured["lr"],
            "grad_norm": float(measured["grad_norm"]),
        }

    def check_progress(self) -> None:
        """Raise Diverged where `SKIPS_ALLOWED` steps in a row did not count."""
        if int(self.training_step.longest_row) >= SKIPS_ALLOWED:
            raise Diverged(
                f"no finite gradient in {SKIPS_ALLOWED} steps in a row before step {self.step}; "
                "lower the learning rate, or bound the log-scale"
            )

    def evaluate(self) -> bool:
        """Score the averaged weights on held-out images; keep them where they are the best so far."""
        flow = assembled(self.ema.flow)
        score = self.scored(flow, "held_out_")
        if not score < self.best_score:
            return False
        self.best_step, self.best_score = self.step, score
        # Before the checkpoint that names this step as the best: killed in between, the run resumes before both.
        self.write(lambda: flow.save_weights(self.out / WEIGHTS_FILE))
        return True

    def scored(self, flow: TarFlow, name: str) -> float:
        """The bits of the held-out images, written down and reported under a name; the same number on all ranks."""
        result = score_held_out(flow, self.held_out, self.config, self.ranks)
        metrics = {
            "step": self.step,
            f"{name}{self.measure.figure}": result.mean,
            "standard_error": result.standard_error,
        }
        self.append(metrics)
        self.report(metrics)
        return self.ranks.on_first(lambda: result.mean)  # whose last bit may differ from one processor to another

    def draw_samples(self) -> None:
        """A sheet of samples from the same noise every time, through the averaged weights."""
        path = self.out / checkpoint.SAMPLES / f"step-{self.step:07d}.png"
        averaged = assembled(self.ema.flow)
        given = self.held_out.values(self.config.model.conditioned_on)
        said = draw_sheet(averaged, self.config, path, self.ranks, self.directory.writing, given)
        self.logs.sheet(self.step, path)
        self.report({"step": self.step, "samples": said})

    def append(self, metrics: dict[str, Any]) -> None:
        """Add a line to the run's metrics; rank 0 does, and nobody waits for it."""
        if self.ranks.first:
            with self.directory.writing():
                checkpoint.append_metrics(self.out, metrics)
            self.logs.numbers(metrics)

    def write(self, work: Callable[[], object]) -> None:
        """Let rank 0 write to the run's directory, if it still is that; all ranks wait until it is done."""

        def guarded() -> None:
            with self.directory.writing():
                work()

        self.ranks.on_first(guarded)

    # --- what survives -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that resuming needs, on any number of ranks. All ranks must call it; the whole is for rank 0."""
        state = {
            "step": self.step,
            "skipped": int(self.training_step.skipped),
            "skipped_in_a_row": int(self.training_step.skipped_in_a_row),
            "best_step": self.best_step,
            "best_score": self.best_score,
            "seconds": self.seconds,
            "run": self.training.run,
            "data": self.fingerprint,
            "flow": self.flow.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
        }
        return gathered(state, self.ranks.first)

    def restore(self, state: dict[str, Any], origin: Path) -> None:
        check_state(state, self.optimizer, origin / checkpoint.STATE_FILE, self.training.run)
        if state["data"] != self.fingerprint:
            raise ConfigError(f"data.source: the training images are not those that {origin} was trained on")
        load_weights(self.flow, split_weights(state["flow"], self.flow), origin / checkpoint.STATE_FILE)
        load_weights(self.ema.flow, split_weights(read_tensors(origin / WEIGHTS_FILE), self.ema.flow), origin)
        self.ema.updates = state["ema_updates"]
        self.optimizer.load_state_dict(split_moments(state["optimizer"], self.optimizer))
        self.step = state["step"]
        self.training_step.set_counts(state["skipped"], state["skipped_in_a_row"])
        self.best_step, self.best_score, self.seconds = state["best_step"], state["best_score"], state["seconds"]

    def save(self) -> None:
        """Write a checkpoint, and remove those that are not kept; all ranks must call it."""
        averaged, state = assembled(self.ema.flow), self.state()
        self.logs.flush()
        self.write(lambda: checkpoint.save_checkpoint(self.out, self.step, averaged, self.config, state))
        self.write(lambda: checkpoint.remove_old_checkpoints(self.out, self.training.keep_last, self.best_step))
