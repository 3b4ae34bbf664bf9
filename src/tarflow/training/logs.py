"""Who else hears of a run on its way: a CSV file, TensorBoard, Weights & Biases.

`metrics.jsonl` is the truth: what a logger gets is its lines, and the sheets in `samples/`, after they are written
there. A run that is resumed goes on in the same logs, and the steps that it takes again replace what they said before.
A logger that fails is named in one `LogWarning` and left out from then on: no training ends for one.

A new logger is a subclass of `Logger`, a line of `LOGGERS`, and its name in `config.Logger`.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from tarflow import checkpoint, storage
from tarflow.config import RunConfig, to_dict

Entry: TypeAlias = dict[str, Any]
"""A line of metrics.jsonl: numbers by name, `step` among them."""


class LogWarning(UserWarning):
    """A logger failed, and gets nothing more of this run."""


class Logger:
    """One that is told of a run. Whatever a method raises is the end of the logger, not of the run.

    `run` is the directory, `earlier` are the lines of metrics.jsonl up to the step that the run begins at.
    """

    def __init__(self, run: Path, config: RunConfig, earlier: Sequence[Entry]) -> None:
        raise NotImplementedError

    def numbers(self, entry: Entry) -> None:
        """Take in a line."""

    def sheet(self, step: int, file: Path) -> None:
        """Take in a sheet of samples."""

    def flush(self) -> None:
        """Put on the disk what was taken in: a checkpoint will be written, before which no step is taken again."""

    def close(self) -> None:
        """No more will come."""


class Csv(Logger):
    """RUN/metrics.csv, a line a line, with an empty field for what a line does not have. It needs no package.

    A name that is new makes a new column: the file is then written again as a whole, a few times in a run.
    """

    def __init__(self, run: Path, config: RunConfig, earlier: Sequence[Entry]) -> None:
        self.run, self.file = run, run / checkpoint.METRICS_CSV
        self.columns: list[str] = []
        self._write_all(earlier)

    def numbers(self, entry: Entry) -> None:
        if entry.keys() - set(self.columns):
            self._write_all(checkpoint.read_metrics(self.run))  # this line is there already
        else:
            storage.append_text(self.file, self._text([entry]))

    def _write_all(self, entries: Sequence[Entry]) -> None:
        self.columns = list(dict.fromkeys(name for entry in ({"step": 0}, *entries) for name in entry))
        storage.write_text(self.file, ",".join(self.columns) + "\n" + self._text(entries))

    def _text(self, entries: Iterable[Entry]) -> str:
        text = io.StringIO()
        rows = ({name: _finite(value) for name, value in entry.items()} for entry in entries)
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


class TensorBoard(Logger):
    """RUN/tensorboard, for `tensorboard --logdir`. What was said of later steps is purged where a run goes on.

    Records are written here and now: the package's own writer has a thread for it, whose failure nobody could catch.
    """

    def __init__(self, run: Path, config: RunConfig, earlier: Sequence[Entry]) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            raise RuntimeError("not installed: pip install 'tarflow[log]'") from None
        place = run / checkpoint.TENSORBOARD
        known = place.exists()
        place.mkdir(exist_ok=True)
        self.event, self.summary, self.writer = event_pb2, summary_pb2, RecordWriter
        self.file = place / f"events.out.tfevents.{time.time_ns()}"
        self._write(file_version="brain.Event:2")
        if known:
            step = earlier[-1]["step"] if earlier else 0
            self._write(step=step + 1, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        else:
            _tell_earlier(self, run, earlier)

    def numbers(self, entry: Entry) -> None:
        named = {name: _finite(value) for name, value in entry.items() if name != "step"}
        values = [self.summary.Summary.Value(tag=name, simple_value=value) for name, value in named.items()]
        self._write(step=entry["step"], summary=self.summary.Summary(value=values))

    def sheet(self, step: int, file: Path) -> None:
        with Image.open(file) as image:
            size = {"width": image.width, "height": image.height, "colorspace": len(image.getbands())}
        shown = self.summary.Summary.Image(encoded_image_string=file.read_bytes(), **size)
        values = [self.summary.Summary.Value(tag="samples", image=shown)]
        self._write(step=step, summary=self.summary.Summary(value=values))

    def flush(self) -> None:
        storage.flush(self.file)

    def _write(self, **fields: Any) -> None:
        record = io.BytesIO()
        self.writer(record).write(self.event.Event(wall_time=time.time(), **fields).SerializeToString())
        with open(self.file, "ab") as file:
            file.write(record.getvalue())


class WandB(Logger):
    """Weights & Biases, by its own settings (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY …); its files are in RUN/wandb.

    The run there has the identity of the run here, so that it goes on when this one does. Nobody is asked to log in.
    """

    def __init__(self, run: Path, config: RunConfig, earlier: Sequence[Entry]) -> None:
        try:
            import wandb
        except ImportError:
            raise RuntimeError("not installed: pip install wandb") from None
        assert config.training is not None
        known = (run / "wandb").exists()
        online = os.environ.get("WANDB_MODE", "online") not in ("offline", "disabled", "dryrun")
        if online and not wandb.login(prompt=False, verify=False):  # it would ask, and wait for an answer
            raise RuntimeError("not logged in: `wandb login`, or WANDB_MODE=offline")
        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "tarflow",
            name=os.environ.get("WANDB_NAME") or run.resolve().name,
            id=config.training.run,
            resume="allow",
            dir=str(run),
            config=to_dict(checkpoint.Places.of(config).portable().put_into(config)),
            settings=wandb.Settings(console="off", silent=True, init_timeout=60),
        )
        if not known:
            _tell_earlier(self, run, earlier)

    def numbers(self, entry: Entry) -> None:
        values = {name: _finite(value) for name, value in entry.items() if name != "step"}
        self.run.log(values, step=entry["step"])

    def sheet(self, step: int, file: Path) -> None:
        self.run.log({"samples": self.wandb.Image(str(file))}, step=step)

    def close(self) -> None:
        self.run.finish()


LOGGERS: dict[str, type[Logger]] = {"csv": Csv, "tensorboard": TensorBoard, "wandb": WandB}


class Logs:
    """The loggers of a run: each is told everything until it fails, which is said once. Without names there is none."""

    def __init__(self, names: Sequence[str], run: Path, config: RunConfig) -> None:
        self._loggers: dict[str, Logger] = {}
        if not names:
            return
        earlier = checkpoint.read_metrics(run)
        for name in dict.fromkeys(names):
            self._try(name, functools.partial(self._begin, name, run, config, earlier))

    def _begin(self, name: str, run: Path, config: RunConfig, earlier: Sequence[Entry]) -> None:
        self._loggers[name] = LOGGERS[name](run, config, earlier)

    def numbers(self, entry: Entry) -> None:
        """Tell of a line that was added to metrics.jsonl."""
        self._each(lambda logger: logger.numbers(entry))

    def sheet(self, step: int, file: Path) -> None:
        """Tell of a sheet, where one was drawn."""
        if file.exists():
            self._each(lambda logger: logger.sheet(step, file))

    def flush(self) -> None:
        """Put everything on the disk."""
        self._each(lambda logger: logger.flush())

    def close(self) -> None:
        """End them all."""
        self._each(lambda logger: logger.close())
        self._loggers.clear()

    def _each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            self._try(name, functools.partial(act, logger))

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever it is: of a package, of a disk, of a network
            self._loggers.pop(name, None)
            reason = " ".join(str(error).split()) or type(error).__name__
            with warnings.catch_warnings():
                warnings.simplefilter("always", LogWarning)  # who makes errors of warnings does not mean this one
                warnings.warn(f"--log {name}: {reason}; the training goes on without it", LogWarning, stacklevel=2)


def _tell_earlier(logger: Logger, run: Path, earlier: Sequence[Entry]) -> None:
    """Tell a logger that is new to a run what it has missed: steps in order, and their sheets."""
    for entry in earlier:
        logger.numbers(entry)
    last = earlier[-1]["step"] if earlier else 0
    for file in sorted((run / checkpoint.SAMPLES).glob("step-*.png")):
        number = file.stem.removeprefix("step-")
        if number.isdecimal() and int(number) <= last:
            logger.sheet(int(number), file)


def _finite(value: float) -> float:
    """NaN for what is not finite: JSON has null there, from which nobody tells an infinity."""
    return value if math.isfinite(value) else math.nan
