"""From a run to a model of the hub: the folder that others see, and its way there."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from tarflow import __version__, hub, storage
from tarflow.checkpoint import Places, write_config
from tarflow.config import RunConfig
from tarflow.data.readers.hub import PREFIX
from tarflow.data.sources import KNOWN_NAMES
from tarflow.drawing import Sampler, usual_numbers
from tarflow.hub import HubId, endpoint, quiet
from tarflow.kept import kept_file
from tarflow.pretrained import CARD_FILE, WEIGHTS_FILE
from tarflow.runs import Run
from tarflow.sharing.card import model_card

SHEET = "samples.png"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the hub names them


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be made of a run: its name on the hub, what people must know, and how many samples they see.

    Attributes:
        model: its name, and the branch, None for `main`.
        licence: as the hub names it, such as "mit", "cc-by-4.0" or "other". data: what the images are called.
        samples: of the sheet, 0 for none. seed: of their noise.
    """

    model: HubId
    licence: str
    data: str | None = None
    samples: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "licence", check_licence(self.licence))
        if self.samples < 0:
            raise ValueError(f"samples: expected 0 or more, got {self.samples}")
        if self.data is not None and not self.data.strip():
            raise ValueError("data: expected what the images are called, got nothing")


def check_licence(licence: str) -> str:
    """A licence in the small letters of the hub's names. Raises ValueError where it cannot be one of them."""
    if not _LICENCE.fullmatch(licence.lower()):
        known = "mit, apache-2.0, cc-by-4.0 or other"
        raise ValueError(f"licence: expected it as the hub names it, such as {known}, got {licence!r}")
    return licence.lower()


def write_model(run: Run, out: Path, wanted: Wanted, progress: Callable[[float, int], None] | None = None) -> None:
    """Fill a directory with what is pushed: `write_files`, samples and the card."""
    write_files(run, out)
    sheet: dict[str, Any] | None = None
    if wanted.samples and run.config.model.channels in (1, 3):
        numbers = usual_numbers(run)
        Sampler(run).write(
            out / SHEET, wanted.samples, (), run.setting, wanted.seed, progress=progress, numbers=numbers
        )
        sheet = {"file": SHEET, "count": wanted.samples, "seed": wanted.seed, "given": ""}
        if numbers is not None:
            sheet["given"] = f"the mean of {' and of '.join(run.numbers)}"
    data = run.config.data
    title = wanted.data or (Places.of(portable(run.config)).source if data else "") or "not stored with the model"
    card = model_card(run, wanted.model.repo, wanted.licence, " ".join(title.split()), sheet)
    storage.write_text(out / CARD_FILE, card)


def write_files(run: Run, out: Path) -> None:
    """Put a model where others find it: config, weights, and what was found out of them.

    Nothing in it tells of the machine: not where the images are, nor what their files are called.
    """
    write_config(out, portable(run.config))
    shutil.copyfile(run.path / WEIGHTS_FILE, out / WEIGHTS_FILE)
    for name in hub.KEPT:
        if (file := kept_file(run, name)).exists():
            shutil.copyfile(file, out / name)


def portable(config: RunConfig) -> RunConfig:
    """A config for everywhere: of a source that is a path the last part, and no place."""
    data = config.data
    if data is not None and data.source not in KNOWN_NAMES and not data.source.startswith(PREFIX):
        config = dataclasses.replace(config, data=dataclasses.replace(data, source=Path(data.source).name))
    return Places.of(config).portable().put_into(config)


def check_access(model: HubId) -> None:
    """Raise OSError with one line, before any work, where nobody is logged in to the hub, or it is not there."""
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError:
        raise OSError(f"{model}: to push needs huggingface_hub: {hub.INSTALL}") from None
    if get_token() is None:
        raise PermissionError(f"{model}: not logged in to {endpoint()}: `hf auth login`, or a token in HF_TOKEN")
    try:
        with quiet():
            HfApi().whoami()
    except Exception as error:
        _refuse(model, error)


def upload(folder: Path, model: HubId, *, private: bool = False) -> str:
    """Push a folder to a repository of the hub, which is made where there is none; gives the address of the commit.

    Raises OSError or ValueError with one line. Until the commit, which is the last thing, nobody sees a file of it.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="tarflow", library_version=__version__)
    try:
        with quiet():
            api.create_repo(model.repo, private=private or None, exist_ok=True)
            if private and not api.repo_info(model.repo).private:
                raise ValueError(f"{model.repo}: there already, and public; nothing was pushed: make it private first")
            if model.revision is not None:
                api.create_branch(model.repo, branch=model.revision, exist_ok=True)
            commit = api.upload_folder(
                repo_id=model.repo,
                folder_path=folder,
                revision=model.revision,
                commit_message=f"A model of tarflow {__version__}",
            )
    except ValueError:
        raise
    except Exception as error:
        _refuse(model, error)
    return str(commit.commit_url)


def _refuse(model: HubId, error: Exception) -> NoReturn:
    """Raise what an error on the way to the hub comes to, in one line that begins with the model."""
    from huggingface_hub import errors

    cause: Any = error
    while isinstance(cause, RuntimeError) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__  # of a file that was not uploaded
    status = getattr(getattr(cause, "response", None), "status_code", None)
    said = " ".join((getattr(cause, "server_message", None) or "").split())
    if isinstance(cause, errors.OfflineModeIsEnabled):
        raise OSError(f"{model}: not pushed, HF_HUB_OFFLINE keeps from it") from error
    if status in (401, 403, 404):
        raise PermissionError(
            f"{model}: {endpoint()} answered {status}: the token may not write there{f' ({said})' if said else ''}"
        ) from error
    if status is not None:
        raise OSError(
            f"{model}: not pushed, {endpoint()} answered {status}{f' ({said})' if said else ''}; try again later"
        ) from error
    if isinstance(cause, OSError) and cause.errno and cause.filename:
        raise OSError(cause.errno, cause.strerror, cause.filename) from error
    reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}".rstrip(": ")
    raise OSError(f"{model}: not pushed to {endpoint()} ({reason}); try again, what is there is kept") from error
