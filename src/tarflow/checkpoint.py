"""What a run leaves on disk, and how it is opened again.

    RUN/config.json           sections model, data, training (with the id of the run)
    RUN/model.safetensors     the averaged (EMA) weights with the best held-out likelihood so far
    RUN/local.json            what the config says of places on this machine, where it says any
    RUN/metrics.jsonl         one JSON object a line
    RUN/split.json.gz         names of the images that were trained on and of those held out
    RUN/samples/              sample sheets from fixed noise
    RUN/checkpoints/step-N/   config.json, model.safetensors (EMA weights of that step), state.pt (the rest, to resume),
                              digests.json (sizes and digests of the three, by which damage is found)

A run directory is a hub directory: whoever has its `config.json` and `model.safetensors` has the model, and learns
nothing of the machine. What commands find out of a model is in `kept`.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from tarflow import digests, storage
from tarflow.config import ConfigError, DataConfig, RunConfig, TrainingConfig, from_dict, to_dict
from tarflow.digests import DIGESTS_FILE as DIGESTS_FILE
from tarflow.fields import coerce_fields
from tarflow.jsontext import to_json
from tarflow.measure import Measure
from tarflow.model.flow import TarFlow
from tarflow.model.saving import CONFIG_FILE as CONFIG_FILE
from tarflow.model.saving import WEIGHTS_FILE, of_images, read_json
from tarflow.pretrained import located
from tarflow.tensor_files import read_torch_file, stored_digest

STATE_FILE = "state.pt"
LOCAL_FILE = "local.json"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE)
ALL_FILES = (*MODEL_FILES, STATE_FILE)
METRICS_FILE = "metrics.jsonl"
METRICS_CSV, TENSORBOARD = "metrics.csv", "tensorboard"  # of `training.logs`, where they are asked for
CHECKPOINTS, SAMPLES = "checkpoints", "samples"
SPLIT_FILE = "split.json.gz"
MOST_NAME_BYTES = 1 << 28  # of names, some five million: of more, or of what only claims to be names, none are read


@dataclass(frozen=True)
class Run:
    """A model as a command uses it, with what is known of its data and training (None where only a model was saved)."""

    path: Path
    flow: TarFlow
    config: RunConfig

    @property
    def measure(self) -> Measure:
        """How the model sees pixels; 256 levels with uniform noise where nothing is stored."""
        return self.config.measure

    @property
    def levels(self) -> int:
        """Values a pixel can take; 256 where nothing else is stored."""
        return self.measure.levels

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; their numbers where none are stored."""
        if self.config.data and self.config.data.class_names:
            return self.config.data.class_names
        return tuple(str(k) for k in range(self.config.model.num_classes))

    @property
    def noise(self) -> str:
        """The noise of training, which decides how values become pixels again; uniform where nothing is stored."""
        return self.measure.noise

    @property
    def sigma(self) -> float | None:
        """σ of the Gaussian noise in training; None where there was none, or nothing is stored."""
        return self.measure.sigma


def open_run(path: str | Path, device: torch.device | str = "cpu") -> Run:
    """Open a run directory, a hub directory, one `step-N` of a run, or a model of the package or the hub by its name.

    Raises naming the file that does not fit.
    """
    path = located(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such directory; expected a run, or a directory with {CONFIG_FILE}")
    if not (path / WEIGHTS_FILE).exists():  # perhaps a run that has checkpoints but has not been evaluated yet
        path = sound_checkpoint(path, MODEL_FILES) or path
    elif (path / DIGESTS_FILE).exists() and (problem := damage(path, MODEL_FILES)) is not None:
        raise ValueError(f"{path}/{problem}")
    try:
        return Run(path, config=read_config(path), flow=TarFlow.from_pretrained(path, device=device))
    except (ValueError, OSError) as error:
        sound = [p for p in checkpoints(path) if damage(p, MODEL_FILES) is None]
        if not sound:
            raise
        raise ValueError(f"{error}; {sound[-1]} is sound, and may be given in its place") from None


def weights_digest(path: str | Path) -> str:
    """The digest of the weights in a directory, by which two are told to be the same; a copy of it has the same.

    What is kept beside weights, or in a cache, holds it, and is out of date where it is another one.
    """
    return stored_digest(Path(path) / WEIGHTS_FILE)


def check_free(out: str | Path, *, resume: bool) -> None:
    """Raise FileExistsError where a new run would overwrite an old one, or the name is not a directory's.

    Raises FileNotFoundError where there are checkpoints to resume from, and the run has lost its config.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: a file; expected a directory for the run")
    latest = latest_checkpoint(out)
    if not resume and ((out / CONFIG_FILE).exists() or latest is not None):
        raise FileExistsError(f"{out}: holds a run already; continue it with --resume, or give another --out")
    for name in (WEIGHTS_FILE, METRICS_FILE, SAMPLES, METRICS_CSV, TENSORBOARD):
        if not resume and (out / name).exists():
            raise FileExistsError(f"{out}: holds {name}, which a run would write over; give another --out")
    if latest is not None and not (out / CONFIG_FILE).exists():
        raise FileNotFoundError(f"{out / CONFIG_FILE}: missing; copy that of {latest} to its place")


@dataclass(frozen=True)
class Places:
    """What a config says of places on a machine, as `local.json` holds it; each is empty where it says none."""

    source: str = ""
    place: str = ""
    init_from: str = ""
    conditions_from: str = ""

    def __post_init__(self) -> None:
        coerce_fields(self)

    @classmethod
    def of(cls, config: RunConfig) -> Places:
        """Those of a config."""
        data, training = config.data or DataConfig(), config.training or TrainingConfig()
        return cls(data.source, data.place, training.init_from, data.conditions_from)

    def portable(self) -> Places:
        """The same for everywhere: of an absolute path the last part, and no place."""
        return Places(*(_last_part(path) for path in (self.source, "", self.init_from, self.conditions_from)))

    def put_into(self, config: RunConfig) -> RunConfig:
        """A config with these places."""
        data, training = config.data, config.training
        if data is not None:
            data = replace(data, source=self.source, place=self.place, conditions_from=self.conditions_from)
        training = training and replace(training, init_from=self.init_from)
        return replace(config, data=data, training=training)


def _last_part(path: str) -> str:
    return (Path(path).name or path) if os.path.isabs(os.path.expanduser(path)) else path


def read_config(path: str | Path) -> RunConfig:
    """The `config.json` of a directory, with the places of its `local.json`, unless it says others itself."""
    file, local = Path(path) / CONFIG_FILE, Path(path) / LOCAL_FILE
    config = from_dict(RunConfig, of_images(read_json(file), path), str(file))
    places = from_dict(Places, read_json(local), str(local)) if local.exists() else Places.of(config)
    return places.put_into(config) if places.portable() == Places.of(config) else config


def write_config(path: str | Path, config: RunConfig) -> None:
    """Write the `config.json` of a directory, whole or not at all, and `local.json`, where it names places.

    Sections that are not known are left out.
    """
    places = Places.of(config)
    if places != places.portable():
        storage.write_json(Path(path) / LOCAL_FILE, to_dict(places))
    portable = to_dict(places.portable().put_into(config))
    sections = {name: section for name, section in portable.items() if section is not None}
    storage.write_json(Path(path) / CONFIG_FILE, sections)


def save_checkpoint(run: Path, step: int, averaged: TarFlow, config: RunConfig, state: dict[str, Any]) -> Path:
    """Write `RUN/checkpoints/step-N`, whole or not at all."""
    directory = run / CHECKPOINTS
    directory.mkdir(exist_ok=True)
    storage.flush(run / METRICS_FILE)  # resuming from here, nobody writes the lines before it again
    with storage.replacing_directory(directory / f"step-{step}") as temporary:
        averaged.save_weights(temporary / WEIGHTS_FILE)
        write_config(temporary, config)
        torch.save(state, temporary / STATE_FILE)
        storage.write_json(temporary / DIGESTS_FILE, {name: digests.file_facts(temporary / name) for name in ALL_FILES})
    return directory / f"step-{step}"


def write_names(run: Path, train: Sequence[str], held_out: Sequence[str]) -> None:
    """Keep the names of a run's images in RUN/split.json.gz: what was trained on, and what was held out."""
    values = {"train": list(train), "held_out": list(held_out)}
    with storage.replacing_file(run / SPLIT_FILE) as temporary:
        temporary.write_bytes(gzip.compress(to_json(values).encode(), mtime=0))


def read_names(run: Path) -> dict[str, bool] | None:
    """Of each name in RUN/split.json.gz whether it is held out; None where there is no such file, or it is damaged."""
    try:
        with gzip.open(run / SPLIT_FILE) as file:
            text = file.read(MOST_NAME_BYTES + 1)
        values = json.loads(text) if len(text) <= MOST_NAME_BYTES else None
        names = dict.fromkeys(values["train"], False) | dict.fromkeys(values["held_out"], True)  # type: ignore[index]
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, RecursionError):
        return None
    return names if names and all(isinstance(name, str) for name in names) else None


def checkpoints(run: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [
        (int(m[1]), p) for p in (Path(run) / CHECKPOINTS).glob("step-*") if (m := re.fullmatch(r"step-(\d+)", p.name))
    ]
    return [path for _, path in sorted(found)]


def latest_checkpoint(run: str | Path) -> Path | None:
    """The newest checkpoint of a run."""
    return next(reversed(checkpoints(run)), None)


def damage(directory: Path, files: Sequence[str] = ALL_FILES) -> str | None:
    """Which of the `files` of a checkpoint is not what was written, and why, in one line; None where all are.

    Each is held against the size and the digest that were written down with it.
    """
    if missing := [name for name in files if not (directory / name).is_file()]:
        return f"{missing[0]}: missing"
    try:
        known = digests.recorded(directory, files)
    except ValueError as error:
        return str(error)
    problems = ((name, digests.difference(directory / name, known[name])) for name in files)
    return next((f"{name}: {problem}" for name, problem in problems if problem is not None), None)


def sound_checkpoint(run: str | Path, files: Sequence[str] = ALL_FILES) -> Path | None:
    """The newest checkpoint of a run whose `files` are sound; None where there are no checkpoints.

    A `DamageWarning` says which were passed over, and why. Raises ValueError where there are some, and none is sound.
    """
    problems: list[str] = []
    for path in reversed(checkpoints(run)):
        if (problem := damage(path, files)) is None:
            if problems:
                warnings.warn(f"{'; '.join(problems)}; going back to {path}", storage.DamageWarning, stacklevel=2)
            return path
        problems.append(f"{path}/{problem}")
    if problems:
        raise ValueError(f"{run}: none of its checkpoints is sound: {'; '.join(problems)}")
    return None


def load_state(checkpoint: str | Path) -> dict[str, Any]:
    """The training state of one checkpoint, on the CPU."""
    path = Path(checkpoint) / STATE_FILE
    state = read_torch_file(path, "expected the state of a training run")
    return cast("dict[str, Any]", state)  # `resuming.check_state` says whether it is one


def remove_old_checkpoints(run: Path, keep_last: int, best_step: int | None) -> None:
    """Keep the newest `keep_last` checkpoints and that of the best step."""
    for path in checkpoints(run)[:-keep_last]:
        if path.name != f"step-{best_step}":
            storage.remove_directory(path)


def append_metrics(run: Path, values: dict[str, Any]) -> None:
    """Add one line to `metrics.jsonl`; a number that is not finite is null there."""
    storage.append_text(run / METRICS_FILE, to_json(values) + "\n")


def read_metrics(run: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, with NaN for null; a last line cut off by a kill is left out."""
    path = Path(run) / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.is_file() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or type(entry["step"]) is not int or not 0 <= entry["step"] < 2**63:
                raise TypeError
            if not all(value is None or _is_number(value) for value in entry.values()):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            if number < len(lines):
                raise ConfigError(
                    f"{path}:{number}: expected a JSON object of numbers with a step; remove the line"
                ) from None
        else:
            entries.append({name: math.nan if value is None else value for name, value in entry.items()})
    return entries


def _is_number(value: Any) -> bool:
    """Whether JSON has a number here, or one of Python's words for what is none, that floats can hold."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1023)


def rewind_metrics(run: Path, step: int) -> None:
    """Drop the lines after `step`: a run resumed from there writes them again."""
    entries = [entry for entry in read_metrics(run) if entry["step"] <= step]
    storage.write_text(run / METRICS_FILE, "".join(to_json(entry) + "\n" for entry in entries))
