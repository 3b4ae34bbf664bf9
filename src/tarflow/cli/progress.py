"""What a person sees while a model trains: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from tarflow.config import RunConfig
from tarflow.data.load import Splits
from tarflow.data.streamed import StreamedSplits

LINE_SECONDS = 10  # between two lines where there is no terminal to draw a bar on


class Progress:
    """Reports training to stderr; standard output stays free for results. A `quiet` one reports nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
            transient=True,
        )
        self.task: TaskID | None = None
        self.spoke = time.monotonic()
        self.rate = 0.0
        self.text = ""  # of the last step whose metrics were read
        self.stage = ""
        self.unread = 0
        self.mark = (0, 0.0)  # step and time of the first report

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
        """Images read so far."""
        self._advance("reading", done, total, "images")

    def preparing(self, what: str, done: int, total: int) -> None:
        """Images (or files) of a stage so far."""
        if self.task is not None and self.stage != what:
            self.bar.remove_task(self.task)
            self.task = None
        self.stage = what
        self._advance(what, done, total, "files" if what == "checking" else "images")

    def checking(self, done: int, total: int) -> None:
        """Bytes of a prepared directory read so far."""
        self._advance("checking", done // 10**6, total // 10**6, "MB")

    def scoring(self, done: int, total: int) -> None:
        """Images times draws scored so far."""
        self._advance("scoring", done, total, "draws")

    def sampling(self, done: int, total: int) -> None:
        """Images drawn so far; those that are on their way count by the share of the blocks that they are through."""
        self._advance("sampling", done, total, "images")

    def begin(self, config: RunConfig, splits: Splits | StreamedSplits, out: Path, processes: int = 1) -> None:
        """Say what is about to be trained on what."""
        model, training = config.model, config.training
        assert training is not None and config.data is not None
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None
        height, width = model.image_shape
        classes = f"{model.num_classes} classes" if model.num_classes else "no classes"
        split = "its own split" if splits.own_split else "split by seed"
        noise = f"gaussian σ={training.noise_std}" if training.noise == "gaussian" else "uniform"
        self.say(
            f"{config.data.source}: {len(splits.train)} training and {len(splits.held_out)} held-out images ({split}), "
            f"{model.channels}x{height}x{width}, {classes}"
        )
        shared = (
            f" of {processes} processes ({'fsdp' if training.strategy == 'fsdp' else 'ddp'})" if processes > 1 else ""
        )
        self.say(
            f"{model.num_patches} patches of {model.patch_size}x{model.patch_size}, width {model.width}, layers "
            f"{'-'.join(map(str, model.layers))}; {noise} noise, batch {training.batch_size}{shared}; run in {out}"
        )

    def report(self, metrics: dict[str, Any]) -> None:
        """One step, evaluation, sample sheet, or image of a stream that cannot be read."""
        if "skipped_image" in metrics:
            self.unread += 1
            return self.say(f"skipped {metrics['skipped_image']} ({self.unread} so far; another one takes its place)")
        if "samples" in metrics or any(name.startswith(("held_out", "settled")) for name in metrics):
            step = metrics["step"]
            facts = [
                f"{k.replace('_', ' ')} {_short(v)}" for k, v in metrics.items() if k not in ("step", "standard_error")
            ]
            return self.say(f"step {step}: {', '.join(facts)}")
        now = time.monotonic()
        if self.mark[0] == 0:
            self.mark = (metrics["step"], now)
        if "loss" in metrics:  # of most steps there is the number alone: reading more would stop the device
            bits = metrics.get("bits_per_dim", metrics.get("noisy_bits_per_dim"))
            self.rate = metrics.get("images_per_second", self.rate)
            rate = f"  {self.rate:.0f} images/s" if self.rate else ""
            self.text = f"loss {metrics['loss']:.3f}  {bits:.3f} bits/dim{rate}"
        self._advance("training", metrics["step"], metrics["total"], self.text)

    def _advance(self, verb: str, done: int, total: int, text: str) -> None:
        if self.console.is_terminal:
            if self.task is None:
                self.task = self.bar.add_task(verb, total=total, text=text)
            self.bar.update(self.task, completed=done, total=total, text=text, description=verb)
        elif time.monotonic() - self.spoke > LINE_SECONDS:
            self.spoke = now = time.monotonic()
            left = ""
            if verb == "training" and done > self.mark[0]:
                left = f"  {(now - self.mark[1]) / (done - self.mark[0]) * (total - done):.0f} s left"
            self.say(f"{verb} {done}/{total}  {text}{left}")


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
