"""Going on where a run stopped: which checkpoint, whether its state fits, and what is on disk of the steps after it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch

from tarflow import checkpoint, digests, storage
from tarflow.config import ConfigError, RunConfig
from tarflow.data.identity import write_names
from tarflow.data.load import Splits
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.tensor_files import check_dense
from tarflow.training.optimizer import moments_of
from tarflow.training.setup import check_resumable, step_counts

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


def open_directory(out: Path, config: RunConfig, splits: Splits) -> tuple[RunConfig, Path | None]:
    """Make `out` ready for a run on `splits`; what its config is, and the checkpoint to go on from, None without one.

    The config is the given one with the identity of the run: that of the run in `out`, a new one where none is there.
    What a killed process left half-written is cleared away. Damaged checkpoints are passed over with a `DamageWarning`.

    Raises:
        ConfigError: the config differs from that of the run in `out`.
        ValueError: there are checkpoints, and none is sound, or one is of another run.
    """
    (out / checkpoint.CHECKPOINTS).mkdir(exist_ok=True)
    for folder in (out, out / checkpoint.CHECKPOINTS, out / checkpoint.SAMPLES):
        storage.remove_leftovers(folder)
    if (out / checkpoint.CONFIG_FILE).exists():
        stored = checkpoint.read_config(out)
        check_resumable(stored, config, out)
        identity = stored.training.run if stored.training else None
    else:
        identity = uuid.uuid4().hex
    assert config.training is not None
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, run=identity))
    latest = checkpoint.sound_checkpoint(out)
    for path in checkpoint.checkpoints(out):
        found = identity
        with contextlib.suppress(ValueError, OSError):  # a damaged one, which is passed over
            training = checkpoint.read_config(path).training
            found = training.run if training else None
        _check_identity(found, identity, path)
    checkpoint.write_config(out, config)
    write_names(out, splits)
    return config, latest


def extend(out: Path, config: RunConfig, num_images: int) -> str | None:
    """Let the run in `out` go on to the steps or epochs of `config`; what that means, None where they are its own.

    The learning rate follows the schedule of the longer run from here on, so that the run is another one than if it had
    been begun with so many steps. Raises ConfigError: fewer steps than were taken, or another change besides.
    """
    stored = checkpoint.read_config(out)
    assert stored.training is not None and config.training is not None
    more = dataclasses.replace(stored.training, steps=config.training.steps, epochs=config.training.epochs)
    if more == stored.training:
        return None
    longer = dataclasses.replace(stored, training=more)
    check_resumable(longer, config, out)
    before, after = (step_counts(training, num_images)[0] for training in (stored.training, more))
    latest = checkpoint.latest_checkpoint(out)
    taken = 0 if latest is None else int(latest.name.removeprefix("step-"))
    if after < taken:
        raise ConfigError(f"training.steps: the run in {out} has taken {taken} steps, got {after}: expected no fewer")
    with storage.exclusive(out):
        checkpoint.write_config(out, longer)
    return f"{after} steps instead of {before}; the learning rate follows the schedule of {after} from step {taken} on"


def rewind_directory(out: Path, latest: Path | None, step: int, best_step: int | None) -> None:
    """Bring a run directory to where it was at `step`, when `latest` was its newest checkpoint.

    Later checkpoints, which are damaged, lose their names; the best weights so far and the metrics are those of then.
    """
    checkpoint.read_metrics(out)  # which raises before anything is changed
    _set_aside_after(out, latest)
    _restore_best(out, best_step)
    checkpoint.rewind_metrics(out, step)


def _set_aside_after(run: Path, sound: Path | None) -> None:
    """Rename the checkpoints after `sound` to `damaged-step-N`: they would count among the newest, which are kept."""
    for damaged in reversed(checkpoint.checkpoints(run)):
        if damaged == sound:
            return
        target = damaged.with_name(f"damaged-{damaged.name}")
        shutil.rmtree(target, ignore_errors=True)
        damaged.rename(target)


def _restore_best(run: Path, best_step: int | None) -> None:
    """Write the best weights of a run anew, from the checkpoint of that step, where they are missing or damaged."""
    source = run / checkpoint.CHECKPOINTS / f"step-{best_step}"
    if best_step is None or not source.is_dir() or checkpoint.damage(source, [WEIGHTS_FILE]) is not None:
        return  # they are written again when a later step is the best
    have = digests.file_facts(run / WEIGHTS_FILE) if (run / WEIGHTS_FILE).is_file() else None
    if have != digests.file_facts(source / WEIGHTS_FILE):
        with storage.replacing_file(run / WEIGHTS_FILE) as temporary:
            shutil.copyfile(source / WEIGHTS_FILE, temporary)


def _check_identity(found: Any, run: str | None, where: Path) -> None:
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
    _check_identity(state.get("run"), run, file)
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
