"""The training loop: steps, held-out evaluations, samples, checkpoints, and leaving in order when told to."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tarflow import checkpoint, storage
from tarflow.config import ConfigError, RunConfig
from tarflow.data.feed import Feed
from tarflow.data.images import columns_by_class, save_sheet
from tarflow.data.load import Splits
from tarflow.data.pixels import to_8bit, to_pixels
from tarflow.data.streamed import StreamedSplits
from tarflow.evaluation.likelihood import evaluate_likelihood, to_bits_per_dim
from tarflow.model.flow import WEIGHTS_FILE, TarFlow, load_weights, read_weights
from tarflow.sampling.sample import SamplingError, sample
from tarflow.training.ema import EMA
from tarflow.training.interrupt import Interrupted, collect_signals
from tarflow.training.objective import objective, training_batch, update_base_variance
from tarflow.training.optimizer import build_optimizer, learning_rate, set_learning_rate
from tarflow.training.setup import check_resumable, start_from, step_counts

SKIPS_ALLOWED = 100  # steps in a row without a finite gradient: no later batch will mend the weights
SHEET_IMAGES = 100

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


def train(
    config: RunConfig,
    splits: Splits | StreamedSplits,
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
        resume: go on from the newest checkpoint in `out`, bit for bit as if nothing had happened (on the same device
            and number of threads); from the start where there is none yet.
        init: weights to start from (see `start_from`).
        report: called with the metrics of every step, evaluation and sample sheet.

    Raises:
        FileExistsError: `out` holds a run and `resume` was not asked for.
        ConfigError: the config differs from that of the run to resume, or the training images do.
        Interrupted: SIGTERM or SIGINT came; everything is saved.
        Diverged: the loss is not finite any more.
    """
    out = Path(out)
    checkpoint.check_free(out, resume=resume)
    out.mkdir(parents=True, exist_ok=True)
    (out / checkpoint.CHECKPOINTS).mkdir(exist_ok=True)
    storage.remove_leftovers(out)
    storage.remove_leftovers(out / checkpoint.CHECKPOINTS)
    if (out / checkpoint.CONFIG_FILE).exists():
        check_resumable(checkpoint.read_config(out), config, out)
    checkpoint.write_config(out, config)
    trainer = Trainer(config, splits, out, torch.device(device), report or (lambda metrics: None), init)
    latest = checkpoint.latest_checkpoint(out)
    if latest is not None:
        trainer.restore(checkpoint.load_state(latest), latest)
    checkpoint.rewind_metrics(out, trainer.step)
    with collect_signals() as received, contextlib.closing(trainer.feed):
        return trainer.run(received)


class Trainer:
    """One run in progress. Everything that changes from step to step is in `state()`."""

    def __init__(
        self,
        config: RunConfig,
        splits: Splits | StreamedSplits,
        out: Path,
        device: torch.device,
        report: Report,
        init: TarFlow | None,
    ) -> None:
        from tarflow.training.fabric import Engine  # slow to import

        assert config.training is not None and config.data is not None
        self.config, self.training, self.data = config, config.training, config.data
        self.out, self.device, self.report = out, device, report
        self.fingerprint = splits.train.digest()
        self.feed = Feed(
            splits.train,
            batch_size=self.training.batch_size,
            seed=self.training.seed,
            labelled=config.model.num_classes > 0,
            device=device,
            window=self.data.shuffle_window,
            workers=self.data.workers,
        )
        self.held_out = splits.held_out.choice(self.training.evaluate_images, self.training.seed)
        self.total, self.warmup = step_counts(self.training, len(splits.train))

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.training.seed)
            self.flow = TarFlow(config.model)
        if init is not None:
            start_from(self.flow, init)
        self.flow.to(device).train()
        self.optimizer = build_optimizer(self.flow, self.training)
        self.engine = Engine(self.training, device)
        self.engine.set_up(self.flow, self.optimizer)
        self.ema = EMA(self.flow, self.training.ema_decay)

        self.step = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        self.best_step: int | None = None
        self.best_score = float("inf")
        self.seconds = 0.0

    # --- the loop --------------------------------------------------------------------------------------------------

    def run(self, received: list[int]) -> TrainingResult:
        """Train to the last step. `received` is where the signal handler leaves what came."""
        started = time.monotonic() - self.seconds
        mark = (self.step, self.seconds)
        while self.step < self.total:
            metrics = self.take_step()
            for name, reason in self.feed.newly_skipped():
                self.report({"step": self.step, "skipped_image": f"{name}: {reason}"})
            self.seconds = time.monotonic() - started
            last = self.step == self.total
            if self.step % self.training.log_every == 0 or last:
                steps, seconds = self.step - mark[0], self.seconds - mark[1]
                mark = (self.step, self.seconds)
                metrics["images_per_second"] = steps * self.training.batch_size / max(seconds, 1e-9)
                metrics["skipped"] = self.skipped
                metrics["seconds"] = self.seconds
                checkpoint.append_metrics(self.out, metrics)
            self.report(metrics | {"total": self.total})
            better = False
            if self.step % self.training.evaluate_every == 0 or last:
                better = self.evaluate()
            if self.training.sample_every and (self.step % self.training.sample_every == 0 or last):
                self.draw_samples()
            if better or received or last or self.step % self.training.save_every == 0:
                self.save()
                mark = (self.step, time.monotonic() - started)  # the rate is that of the steps alone
            if received and not last:
                raise Interrupted(received[0], self.step)
        if self.best_step is None:
            raise Diverged("no held-out evaluation was finite; lower the learning rate, or bound the log-scale")
        return TrainingResult(self.total, self.skipped, self.best_step, self.best_score, self.seconds)

    def take_step(self) -> dict[str, Any]:
        """One optimizer step, or a skipped one where the gradient is not finite; its metrics."""
        training = self.training
        x, y = training_batch(
            *self.feed.batch(self.step), self.step, config=training, levels=self.data.levels, flip=self.data.flip
        )
        rate = learning_rate(self.step, config=training, steps=self.total, warmup=self.warmup)
        set_learning_rate(self.optimizer, rate)
        self.engine.zero_grad()
        z, ladj = self.engine(x, y)
        loss = objective(z, ladj)
        self.engine.backward(loss)
        norm = self.engine.clip(training.clip_norm)
        self.step += 1
        finite = bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))
        if finite:
            self.engine.step()
            update_base_variance(self.flow, z)
            self.ema.update()
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
            if self.skipped_in_a_row >= SKIPS_ALLOWED:
                raise Diverged(
                    f"no finite gradient in {SKIPS_ALLOWED} steps before step {self.step}; "
                    "lower the learning rate, or bound the log-scale"
                )
        with torch.no_grad():
            nats = -(self.flow.base_log_prob(z) + ladj).mean() / self.config.model.num_dims
        bits = to_bits_per_dim(float(nats), self.data.levels, training.noise)
        return {
            "step": self.step,
            "loss": float(loss.detach()),
            self.bits_name: bits,
            "lr": rate,
            "grad_norm": float(norm),
        }

    @property
    def bits_name(self) -> str:
        """What the likelihood may be called: a model of noisy images has no bits/dim of the data."""
        return "bits_per_dim" if self.training.noise == "uniform" else "noisy_bits_per_dim"

    def evaluate(self) -> bool:
        """Score the averaged weights on held-out images; keep them where they are the best so far."""
        result = evaluate_likelihood(
            self.ema.flow,
            self.held_out.images,
            self.held_out.labels if self.config.model.num_classes else None,
            levels=self.data.levels,
            noise=self.training.noise,
            noise_std=self.training.noise_std,
            draws=1,  # the same ones every time
        )
        metrics = {
            "step": self.step,
            f"held_out_{self.bits_name}": result.mean,
            "standard_error": result.standard_error,
        }
        checkpoint.append_metrics(self.out, metrics)
        self.report(metrics)
        if not result.mean < self.best_score:
            return False
        self.best_step, self.best_score = self.step, result.mean
        # Before the checkpoint that names this step as the best: killed in between, the run resumes before both.
        self.ema.flow.save_weights(self.out / WEIGHTS_FILE)
        return True

    def draw_samples(self) -> None:
        """A sheet of samples from the same noise every time, through the averaged weights."""
        classes = self.config.model.num_classes
        y = torch.arange(SHEET_IMAGES) % classes if classes else None
        sigma = self.training.noise_std if self.training.noise == "gaussian" else None
        try:
            # The weights are new every time, so that measuring which solver is faster would not pay.
            x = sample(self.ema.flow, SHEET_IMAGES, y, seed=self.training.seed, denoise=sigma, solver="sequential")
        except SamplingError as error:  # weights on their way may overflow: no reason to end a run
            return self.report({"step": self.step, "samples": f"none ({error})"})
        path = self.out / "samples" / f"step-{self.step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = to_pixels(x.cpu(), self.data.levels, self.training.noise)
        save_sheet(path, to_8bit(pixels, self.data.levels), columns=columns_by_class(classes))
        self.report({"step": self.step, "samples": str(path)})

    # --- what survives -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "best_step": self.best_step,
            "best_score": self.best_score,
            "seconds": self.seconds,
            "data": self.fingerprint,
            "flow": self.flow.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any], origin: Path) -> None:
        if state["data"] != self.fingerprint:
            raise ConfigError(f"data.source: the training images are not those that {origin} was trained on")
        self.flow.load_state_dict(state["flow"])
        load_weights(self.ema.flow, read_weights(origin / WEIGHTS_FILE), origin)
        self.ema.updates = state["ema_updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.skipped, self.skipped_in_a_row = state["step"], state["skipped"], state["skipped_in_a_row"]
        self.best_step, self.best_score, self.seconds = state["best_step"], state["best_score"], state["seconds"]

    def save(self) -> None:
        checkpoint.save_checkpoint(self.out, self.step, self.ema.flow, self.config, self.state())
        checkpoint.remove_old_checkpoints(self.out, self.training.keep_last, self.best_step)
