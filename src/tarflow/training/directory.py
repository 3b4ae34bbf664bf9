"""The directory of a run while it is trained: rank 0 alone writes, and asks each time whether it still is the run's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tarflow import checkpoint, locks
from tarflow.config import RunConfig
from tarflow.data.load import Splits
from tarflow.model.flow import TarFlow
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.ranks import ALONE, Ranks
from tarflow.training.resuming import open_directory, rewind_directory


class RunDirectory:
    """Where a training writes. All ranks call the methods that say so; the others are for rank 0.

    A directory that was moved or removed, and a new one of its name, look the same to who knows its path alone. So
    before each write, and after one that failed, the lock is asked (`locks.Hold.check`): a `locks.Lost` ends the
    training, and nothing is written to what belongs to another.
    """

    def __init__(self, path: Path, ranks: Ranks = ALONE) -> None:
        self.path, self.ranks = path, ranks
        self._held = contextlib.ExitStack()
        self._hold: locks.Hold | None = None

    def open(self, config: RunConfig, splits: Splits, *, resume: bool) -> tuple[RunConfig, Path | None]:
        """Take the directory over for a run with `config` on `splits`, on all ranks.

        Returns the config with the run's identity, and the checkpoint to go on from, None where there is none.
        """

        def take_over() -> tuple[RunConfig, Path | None]:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold = self._held.enter_context(locks.exclusive(self.path))
            checkpoint.check_free(self.path, resume=resume)  # another may have come and gone in between
            return open_directory(self.path, config, splits)

        return self.ranks.on_first(take_over)

    def rewind(self, latest: Path | None, step: int, best_step: int | None) -> None:
        """Bring it to where it was at `step`, on all ranks."""

        def rewind() -> None:
            with self.writing():
                rewind_directory(self.path, latest, step, best_step)

        self.ranks.on_first(rewind)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Raise `locks.Lost` rather than write to what is not this run's any more, or explain by it why that failed."""
        if self._hold is not None:
            self._hold.check()
        try:
            yield
        except OSError:
            if self._hold is not None:
                self._hold.check()
            raise

    def append(self, metrics: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        with self.writing():
            checkpoint.append_metrics(self.path, metrics)

    def save_best(self, flow: TarFlow) -> None:
        with self.writing():
            flow.save_weights(self.path / WEIGHTS_FILE)

    def save(
        self, step: int, averaged: TarFlow, config: RunConfig, state: dict[str, Any], best_step: int | None
    ) -> None:
        """Write a checkpoint, and remove those that are not kept."""
        assert config.training is not None
        with self.writing():
            checkpoint.save_checkpoint(self.path, step, averaged, config, state)
        with self.writing():
            checkpoint.remove_old_checkpoints(self.path, config.training.keep_last, best_step)

    def close(self) -> None:
        """Let others write there."""
        self._held.close()
