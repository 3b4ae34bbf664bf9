"""The directory of a run while it is trained: rank 0 alone writes, and asks each time whether it still is the run's.

May a run go on there, with this config and from this state?
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tarflow import checkpoint, digests, locks, storage
from tarflow.config import ConfigError, RunConfig
from tarflow.data.load import Splits
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.ranks import ALONE, Ranks
from tarflow.tensor_files import check_dense
from tarflow.training.optimizer import moments_of


class RunDirectory:
    """Where a training writes. All ranks call `open` and `begin`; the other methods are for rank 0.

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

        What a killed process left half-written is cleared away. Damaged checkpoints are passed over, with a
        `DamageWarning`.

        Returns the config with the identity of the run, which is that of the run in there, a new one where none is;
        and the checkpoint to go on from, None where there is none.

        Raises:
            ConfigError: the config is not one with which the run in there can go on.
            ValueError: there are checkpoints, and none is sound, or one is of another run.
        """

        def take_over() -> tuple[RunConfig, Path | None]:
            self.path.mkdir(parents=True, exist_ok=True)
            self._hold = self._held.enter_context(locks.exclusive(self.path))
            checkpoint.check_free(self.path, resume=resume)  # another may have come and gone in between
            (self.path / checkpoint.CHECKPOINTS).mkdir(exist_ok=True)
            for folder in (self.path, self.path / checkpoint.CHECKPOINTS, self.path / checkpoint.SAMPLES):
                storage.remove_leftovers(folder)
            identified = _with_identity(self.path, config)
            latest = checkpoint.sound_checkpoint(self.path)
            _check_length(self.path, identified, len(splits.train))
            return identified, latest

        return self.ranks.on_first(take_over)

    def begin(self, config: RunConfig, splits: Splits, latest: Path | None, step: int, best_step: int | None) -> None:
        """Write what a run begins with, and bring the rest to where it was at `step`, after `latest`; on all ranks.

        Nothing was changed before, but for what a killed process left. Later checkpoints, which are damaged, lose their
        names, for they would count among the newest, which are kept. Best weights and metrics are those of then. Old
        checkpoints go, for a process that was killed after its last one leaves nobody else to remove them.
        """

        def begin() -> None:
            with self.writing():
                checkpoint.read_metrics(self.path)  # which raises before anything is changed
                checkpoint.write_config(self.path, config)
                checkpoint.write_names(self.path, splits.train.names, splits.held_out.names)
                for damaged in reversed(checkpoint.checkpoints(self.path)):
                    if damaged == latest:
                        break
                    target = damaged.with_name(f"damaged-{damaged.name}")
                    shutil.rmtree(target, ignore_errors=True)
                    damaged.rename(target)
                _restore_best(self.path, best_step)
                checkpoint.rewind_metrics(self.path, step)
                if config.training is not None:
                    checkpoint.remove_old_checkpoints(self.path, config.training.keep_last, best_step)

        self.ranks.on_first(begin)

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

    def close(self) -> None:
        """Let others write there."""
        self._held.close()


def _with_identity(out: Path, config: RunConfig) -> RunConfig:
    """The config with the identity of the run in `out`, which all checkpoints there have, or with a new one."""
    identity: str | None = uuid.uuid4().hex
    if (out / checkpoint.CONFIG_FILE).exists():
        stored = checkpoint.read_config(out)
        check_resumable(stored, config, out)
        identity = stored.training.run if stored.training else None
    for path in checkpoint.checkpoints(out):
        found = identity
        with contextlib.suppress(OSError, ValueError):  # a damaged one, which is passed over
            training = checkpoint.read_config(path).training
            found = training.run if training else None
        check_identity(found, identity, path)
    assert config.training is not None
    return dataclasses.replace(config, training=dataclasses.replace(config.training, run=identity))


def _check_length(out: Path, config: RunConfig, num_images: int) -> None:
    """Raise ConfigError where a run is to have fewer steps than it has taken."""
    assert config.training is not None
    latest = checkpoint.latest_checkpoint(out)
    taken = 0 if latest is None else int(latest.name.removeprefix("step-"))
    steps = config.training.step_counts(num_images)[0]
    if steps < taken:
        raise ConfigError(f"training.steps: the run in {out} has taken {taken} steps, got {steps}: expected no fewer")


def _restore_best(run: Path, best_step: int | None) -> None:
    """Write the best weights of a run anew, from the checkpoint of that step, where they are missing or damaged."""
    source = run / checkpoint.CHECKPOINTS / f"step-{best_step}"
    if best_step is None or not source.is_dir() or checkpoint.damage(source, [WEIGHTS_FILE]) is not None:
        return  # they are written again when a later step is the best
    have = digests.file_facts(run / WEIGHTS_FILE) if (run / WEIGHTS_FILE).is_file() else None
    if have != digests.file_facts(source / WEIGHTS_FILE):
        with storage.replacing_file(run / WEIGHTS_FILE) as temporary:
            shutil.copyfile(source / WEIGHTS_FILE, temporary)


# What decides how long a run is, and when something is written, not where the weights go; where the data lie, for their
# digest is checked; whether a bad record stops it, for until then there was none; and how the same step is computed,
# which must fit the machine that a run is resumed on. Of these `checkpoint_activations` changes no bit, `accumulate`,
# `compile` and `strategy` change rounding, as another device or number of threads or ranks does.
RESUMABLE = (
    *("steps", "epochs", "log_every", "evaluate_every", "sample_every", "save_every", "keep_last"),
    *("source", "conditions_from", "skip_bad"),
    *("accumulate", "checkpoint_activations", "compile", "strategy"),
)
# What the state of a run holds besides the weights and the optimizer, and of which type.
_NUMBERS: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "skipped": (int,),
    "skipped_in_a_row": (int,),
    "best_step": (int, type(None)),
    "best_score": (int, float),
    "seconds": (int, float),
    "data": (str,),
    "ema_updates": (int,),
}
_SETTINGS = ("orthogonal", "factor", "betas", "eps", "weight_decay", "amsgrad", "maximize")


def check_resumable(stored: RunConfig, wanted: RunConfig, run: Path) -> None:
    """Raise ConfigError naming the first option in which they differ, but for those that may change on resuming.

    What follows from the data is not compared: the images are held against their digest.
    """
    for section in ("model", "data", "training"):
        before, now = getattr(stored, section), getattr(wanted, section)
        for entry in dataclasses.fields(before) if before is not None else ():
            have, want = getattr(before, entry.name), getattr(now, entry.name, None)
            if have != want and entry.name not in RESUMABLE and "option" in entry.metadata:
                raise ConfigError(
                    f"{section}.{entry.name}: the run in {run} has {have!r}, got {want!r}; "
                    f"a resumed run may change only {', '.join(RESUMABLE)}"
                )


def check_identity(found: Any, run: str | None, where: Path) -> None:
    """Raise ValueError unless what lies `where` is of the run with this identity."""
    if found != run:
        raise ValueError(f"{where}: of another run (id {found}) than that of this directory (id {run}); remove it")


def check_state(state: Any, optimizer: torch.optim.Optimizer, file: Path, run: str | None) -> None:
    """Raise ValueError naming `file` where `state` is not what a training with `optimizer` saves, of the `run`.

    The weights in it are checked when they are loaded.
    """
    if not isinstance(state, dict):
        raise ValueError(f"{file}: expected a dictionary, got {type(state).__name__}")
    for name, kinds in _NUMBERS.items():
        value = state.get(name)
        if name not in state or not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{file}: {name}: expected {kinds[0].__name__}, got {value!r}")
    check_identity(state.get("run"), run, file)
    if file.parent.name != f"step-{state['step']}" or math.isnan(state["best_score"]):
        got = f"step {state['step']} and {state['best_score']}"
        raise ValueError(f"{file}: expected the step of its directory and a score, got {got}")
    weights = state.get("flow")
    if not isinstance(weights, dict) or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise ValueError(f"{file}: flow: expected weights, names to tensors")
    _check_optimizer(state.get("optimizer"), optimizer, file)


def _check_optimizer(saved: Any, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """As `check_state`, for the optimizer's part: torch takes moments of any shape, and fails when it steps."""
    groups, moments = (saved.get(name) if isinstance(saved, dict) else None for name in ("param_groups", "state"))
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or not isinstance(moments, dict) or len(groups) != len(own):
        raise ValueError(f"{file}: optimizer: expected {len(own)} groups of parameters and their moments")
    for group, expected in zip(groups, own, strict=True):
        for name in ("params", *_SETTINGS):  # other keys come and go with versions of torch
            if not isinstance(group, dict) or repr(group.get(name)) != repr(expected.get(name)):  # whatever is in there
                raise ValueError(f"{file}: optimizer: {name} differ from those of this run's config")
        if not isinstance(group.get("lr"), float):
            raise ValueError(f"{file}: optimizer: lr: expected a number, got {group.get('lr')!r}")
    parameters = [(p, moments_of(group)) for group in optimizer.param_groups for p in group["params"]]
    if moments.keys() != set(range(len(parameters))):
        raise ValueError(f"{file}: optimizer: expected moments of {len(parameters)} tensors, got {len(moments)}")
    for index, (parameter, names) in enumerate(parameters):
        for name in names:
            shape = torch.Size() if name == "step" else parameter.shape
            value = moments[index].get(name) if isinstance(moments[index], dict) else None
            if not isinstance(value, torch.Tensor) or value.shape != shape or not value.is_floating_point():
                raise ValueError(f"{file}: optimizer: {index}.{name}: expected numbers of shape {tuple(shape)}")
            try:  # a fused step writes as many numbers as the parameter has, one after the other
                check_dense(value)
            except ValueError as error:
                raise ValueError(f"{file}: optimizer: {index}.{name}: {error}") from None
            if not value.is_contiguous():
                raise ValueError(f"{file}: optimizer: {index}.{name}: expected numbers in C's order")
            if not bool(value.isfinite().all()):
                raise ValueError(f"{file}: optimizer: {index}.{name}: holds numbers that are not finite")
