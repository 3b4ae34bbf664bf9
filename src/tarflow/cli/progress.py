"""What a person sees while a model trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from tarflow.config import RunConfig
from tarflow.data.load import Splits
from tarflow.report.words import duration

# Where there is no terminal to draw a bar on, lines are printed instead.
FIRST_LINE_SECONDS = 1  # from the begin of a stage to its first line
LINE_SECONDS = 10  # from one line to the next
BAR_WIDTHS = range(8, 41)  # characters; no bar is drawn where there is room for fewer


class Progress:
    """Reports what takes time to stderr; standard output stays free for results. A `quiet` one reports nothing.

    Every stage says how far it is and how long it will take: on a terminal as a line that is drawn again, elsewhere
    (a file, `TERM=dumb`) as a line after a second and one now and then.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self.draws = self.console.is_interactive  # False on a dumb terminal
        self.gauge, self.line = BarColumn(), TextColumn("{task.description}", markup=False)
        self.bar = Bar(self.line, console=self.console, disable=quiet or not self.draws, transient=True)
        self.task: TaskID | None = None
        self.stage = ""
        self.line_time = time.monotonic()  # when the last line was printed
        self.stage_time = self.line_time  # when the stage began
        self.last_time = self.line_time  # of the last progress of any stage
        self.begun = self.total = 0  # how much was done when the stage began, and how much there is
        self.done = 0.0
        self.rate = 0.0
        self.text = ""  # the metrics that were read last

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def loading(self, done: int, total: int) -> None:
        """Images read so far. The clock of the stage starts here: imports and the like came before."""
        if self.stage != "reading":
            self._stage("reading", done)
        self._advance("reading", done, total, "images")

    def preparing(self, what: str, done: int, total: int) -> None:
        """Images (or files) of a stage so far."""
        self._advance(what, done, total, "files" if what == "checking" else "images")

    def checking(self, done: int, total: int) -> None:
        """Bytes of a prepared directory read so far."""
        self._advance("checking", done // 10**6, total // 10**6, "MB")

    def scoring(self, done: int, total: int) -> None:
        """Passes of images through the flow so far: one a draw, times the classes where there is no label."""
        self._advance("scoring", done, total, "passes")

    def scoring_held_out(self, done: int, total: int) -> None:
        """The same for the run's own held-out images, whose scores are kept with the run."""
        self._advance("scoring held-out images", done, total, "passes")

    def sampling(self, done: float, total: int) -> None:
        """Images drawn so far; an unfinished one counts by the share of the blocks that it has gone through."""
        self._advance("sampling", done, total, "images")

    def fitting(self, metrics: dict[str, float]) -> None:
        """An evaluation of a fit: its step, and the log-likelihood of held-out rows, nats."""
        text = f"held-out {metrics['held_out']:.3f} nats a row  best {metrics['best']:.3f}"
        self._advance("fitting", metrics["step"], int(metrics["total"]), "steps", text)

    def begin(self, config: RunConfig, splits: Splits, out: Path, processes: int = 1) -> None:
        """Say what is about to be trained on what."""
        model, training = config.model, config.training
        assert training is not None and config.data is not None
        height, width = model.image_shape
        classes = f"{len(config.data.class_names)} classes" if config.data.class_names else "no classes"
        if config.data.numbers:
            classes += f", given {', '.join(config.data.numbers)}"
        wide = splits.train.wide
        windows = "" if wide is None else f" windows of {wide.shape[2]}x{wide.shape[3]}"
        split = "its own split" if splits.own_split else "split by seed"
        noise = training.noise + (f" σ={training.noise_std}" if config.measure.kind.has_std else "")
        self.say(
            f"{config.data.source}: {len(splits.train)} training and {len(splits.held_out)} held-out images ({split}), "
            f"{model.channels}x{height}x{width}{windows}, {classes}"
        )
        shared = (
            f" of {processes} processes ({'fsdp' if training.strategy == 'fsdp' else 'ddp'})" if processes > 1 else ""
        )
        self.say(
            f"{model.num_patches} patches of {model.patch_size}x{model.patch_size}, width {model.width}, layers "
            f"{'-'.join(map(str, model.layers))}; {noise} noise, batch {training.batch_size}{shared}; run in {out}"
        )

    def report(self, metrics: dict[str, Any]) -> None:
        """One step, evaluation or sample sheet."""
        if "samples" in metrics or any(name.startswith(("held_out", "settled")) for name in metrics):
            step = metrics["step"]
            facts = [
                f"{k.replace('_', ' ')} {_short(v)}" for k, v in metrics.items() if k not in ("step", "standard_error")
            ]
            return self.say(f"step {step}: {', '.join(facts)}")
        if self.stage != "training":
            self._stage("training", metrics["step"])  # the clock starts now: what came before is no measure of a step
            if metrics["step"] > 1:
                self.say(f"resumed: from step {metrics['step'] - 1}")
        if "loss" in metrics:  # most steps report their number alone: reading the loss waits for the device
            bits = metrics.get("bits_per_dim", metrics.get("noisy_bits_per_dim"))
            self.rate = metrics.get("images_per_second", self.rate)
            rate = f"  {self.rate:.0f} images/s" if self.rate else ""
            self.text = f"loss {metrics['loss']:.3f}  {bits:.3f} bits/dim{rate}"
        self._advance("training", metrics["step"], metrics["total"], text=self.text)

    def _stage(self, name: str, begun: int = 0, began: float | None = None) -> None:
        """Begin a stage at the time `began` (now, unless it is given), with `begun` of it done already."""
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None
        self.stage, self.begun, self.done, self.total = name, begun, 0.0, 0
        self.stage_time = time.monotonic() if began is None else began
        self.line_time = self.stage_time + FIRST_LINE_SECONDS - LINE_SECONDS

    def _advance(self, verb: str, done: float, total: int, unit: str = "", text: str = "") -> None:
        now = time.monotonic()
        if verb != self.stage or done < self.done or self.done == self.total > 0:  # a new stage
            self._stage(verb, began=self.last_time)
        self.last_time, self.done, self.total = now, done, total
        left = ""
        if self.begun < done < total:
            left = f"{duration((now - self.stage_time) / (done - self.begun) * (total - done))} left"
        parts = [f"{verb} {int(done)}/{total} {unit}".rstrip(), text, left]
        if self.draws:
            self._draw(done, total, parts)
        elif now - self.line_time > LINE_SECONDS:
            self.line_time = now
            self.say("  ".join(part for part in parts if part))

    def _draw(self, done: float, total: int, parts: list[str]) -> None:
        """Draw the line again, with a bar as long as there is room for: no part of it is cut off at the margin."""
        width = self.console.width
        what, text, left = parts
        facts = text.split("  ")
        while cell_len(line := "  ".join(part for part in (what, *facts, left) if part)) > width and facts:
            facts.pop()
        room = width - cell_len(line) - 1  # a space between the two
        self.bar.columns = (self.line, self.gauge) if room >= BAR_WIDTHS.start else (self.line,)
        self.gauge.bar_width = min(room, BAR_WIDTHS.stop - 1)
        if self.task is None:
            self.task = self.bar.add_task(line, total=total)
        self.bar.update(self.task, completed=done, total=total, description=line)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
