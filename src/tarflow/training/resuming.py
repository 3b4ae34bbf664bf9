"""May a run go on, with this config and from this state?"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from tarflow.config import ConfigError, RunConfig
from tarflow.tensor_files import check_dense
from tarflow.training.optimizer import moments_of

# What decides how long a run is, and when something is written, not where the weights go; where the data lie, for their
# digest is checked; whether a bad record stops it, for until then there was none; and how the same step is computed,
# which must fit the machine that a run is resumed on. Of these `checkpoint_activations` changes no bit, `accumulate`,
# `compile` and `strategy` change rounding, as another device or number of threads or ranks does.
RESUMABLE = (
    *("steps", "epochs", "log_every", "evaluate_every", "sample_every", "save_every", "keep_last"),
    *("source", "skip_bad"),
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
