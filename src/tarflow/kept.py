"""What was found out of a model, and where is it kept? Beside its weights, with their digest, by which it is told old.

    solvers.json     which solver decodes each block fastest, as measured by `tarflow sample`
    sampling.json    guidance and denoising that `tarflow sweep` found best, the defaults of `tarflow sample`
    sweep/           what that sweep measured
    detector.json    which score `tarflow evaluate --against` found best
    quality.json     what `tarflow quality` measured

Neither the package is written to, nor what was fetched from the hub: of a model from there, this is kept in the cache
directory, under its name and the digest of its weights, and goes before what came along.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TypeVar

from tarflow import digests, storage
from tarflow.checkpoint import Run, weights_digest
from tarflow.config import ConfigError, from_dict, to_dict
from tarflow.model.saving import read_json
from tarflow.pretrained import name_of
from tarflow.sampling.auto import Calibration
from tarflow.sampling.setting import StoredSetting

T = TypeVar("T")

SOLVERS_FILE = "solvers.json"
SETTING_FILE = "sampling.json"


def place_to_keep(run: Run) -> Path:
    """The directory for what is found out of a model. Raises OSError where one of the package or the hub has none."""
    place = _place(run)
    if place is None:
        raise OSError(
            f"{name_of(run.path)}: comes with the package, or from the hub, where nothing is written to, and there is "
            "no cache directory; expected TARFLOW_CACHE to name one"
        )
    if place != run.path:
        place.mkdir(parents=True, exist_ok=True)
    return place


def kept_file(run: Run, name: str) -> Path:
    """Where something was kept under a name, or came along; of what is nowhere, a file that does not exist."""
    place = _place(run)
    return place / name if place is not None and (place / name).exists() else run.path / name


def _place(run: Run) -> Path | None:
    if (name := name_of(run.path)) is None:
        return run.path
    cache = storage.cache_directory()
    return None if cache is None else cache / "models" / f"{name.replace('/', '--')}-{weights_digest(run.path)[:8]}"


def keep(run: Run, name: str, value: Any) -> Path:
    """Keep a dataclass under a name, with a digest of it; gives the file. Raises OSError where that cannot be."""
    file = place_to_keep(run) / name
    storage.write_json(file, digests.sealed(to_dict(value)))
    return file


def open_kept(run: Run, name: str, cls: type[T], remedy: str) -> T | None:
    """What `keep` left, or somebody wrote by hand; None where nothing is. Raises ConfigError naming the file."""
    file = kept_file(run, name)
    if not file.exists():
        return None
    stored = read_json(file)
    if digests.is_sealed(stored) and (stored := digests.unsealed(stored)) is None:
        raise ConfigError(f"{file}: damaged, its digest is not that of what was written; {remedy}")
    return from_dict(cls, stored, str(file))


def open_calibration(run: Run) -> Calibration:
    """Which solvers were the fastest for this model, as far as that was measured before."""
    return Calibration.load(kept_file(run, SOLVERS_FILE), weights_digest(run.path))


def save_calibration(run: Run, calibration: Calibration) -> None:
    """Keep it, where one may write: a model in a read-only place is measured every time."""
    with contextlib.suppress(OSError):
        calibration.save(place_to_keep(run) / SOLVERS_FILE, weights_digest(run.path))


def open_setting(run: Run) -> StoredSetting | None:
    """What `save_setting` left; None where nothing is. Raises ConfigError naming the file.

    Its `weights` are to be compared with `weights_digest`: training may have gone on since.
    """
    return open_kept(run, SETTING_FILE, StoredSetting, "`tarflow sweep` again")


def save_setting(run: Run, stored: StoredSetting) -> Path:
    """Keep a setting as the model's default."""
    return keep(run, SETTING_FILE, stored)
