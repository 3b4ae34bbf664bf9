"""Which arguments name a model of the Hugging Face hub, and where are its files once they are here?

`owner/name`, or `owner/name@revision`, with `hub:` before it where a folder `owner` is in the way. The library
`huggingface_hub` (extra `[hub]`) fetches and keeps them by its own rules: HF_HOME, HF_TOKEN or `hf auth login`,
HF_HUB_OFFLINE, HF_ENDPOINT. Only `FILES` are fetched, none of which can hold code, and weights only after a config that
is one of ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

PREFIX = "hub:"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
KEPT = ("sampling.json", "detector.json", "quality.json")  # what was found out of a model, and travels with it
FILES = (CONFIG, WEIGHTS, *KEPT)
INSTALL = "pip install 'tarflow[hub]'"

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_ID = re.compile(rf"({_WORD}/{_WORD})(?:@([^@\s]+))?")
_SNAPSHOT = re.compile(r"models--(.+?)--(.+)")  # how the library names the directory of a model in its cache
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubId(NamedTuple):
    """A model of the hub, and the branch, tag or commit that is meant; None is the newest."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def hub_id(text: str) -> HubId | None:
    """The model that an argument names; None where it is no id, or where it may be a path in a folder that is here.

    Raises ValueError where `hub:` stands before what is no id.

    >>> hub_id("alice/flowers@v1"), hub_id("runs/../flowers"), hub_id("digits")
    (HubId(repo='alice/flowers', revision='v1'), None, None)
    """
    found = _ID.fullmatch(text.removeprefix(PREFIX))
    if text.startswith(PREFIX):
        if found is None:
            raise ValueError(f"{text}: expected {PREFIX}OWNER/NAME, with @REVISION where it is needed")
        return HubId(*found.groups())
    if found is None or Path(found[1]).parent.is_dir():  # a mistyped run of ours is nothing to ask the hub for
        return None
    return HubId(*found.groups())


def fetched(model: HubId) -> Path:
    """The directory of a model, in the library's cache, with those of `FILES` that it has; fetched where they are not.

    Raises FileNotFoundError or OSError with one line: no library, no network, no such model, or a private one.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{model}: no such directory, and a model of the hub needs huggingface_hub: {INSTALL}"
        ) from None

    def fetch(files: tuple[str, ...], revision: str | None) -> Path:
        try:
            with quiet():
                return Path(snapshot_download(model.repo, revision=revision, allow_patterns=list(files)))
        except Exception as error:  # of its own, of the network's, of the file system's
            explain(model, error)

    place = fetch((CONFIG,), model.revision)
    if not _is_ours(place / CONFIG):
        raise FileNotFoundError(f"{model}: no model of tarflow on {endpoint()}, its {CONFIG} has no section `model`")
    place = fetch(FILES, place.name)  # of the same commit
    if not (place / WEIGHTS).is_file():
        raise FileNotFoundError(f"{model}: has no {WEIGHTS} on {endpoint()}")
    for name in FILES:
        _check_content(model, place / name)
    return place


def name_of(path: Path) -> str | None:
    """The id of the model whose files the library keeps in a directory, `owner/name`; None of any other directory.

    >>> name_of(Path("hub/models--alice--flowers/snapshots/0123abc"))
    'alice/flowers'
    """
    found = _SNAPSHOT.fullmatch(path.parent.parent.name)
    return f"{found[1]}/{found[2]}" if found and path.parent.name == "snapshots" else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's log to errors: what it tries again is nobody's concern until it gives up, which it raises."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        log.setLevel(level)


def endpoint() -> str:
    """The address of the hub that is asked."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def explain(model: HubId, error: Exception) -> NoReturn:
    """Raise what an error of the library comes to, in one line that begins with the model."""
    from huggingface_hub import constants, errors

    cause: Any = error
    while isinstance(cause, errors.LocalEntryNotFoundError) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__  # what kept it from asking the hub
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(cause, errors.OfflineModeIsEnabled) or (constants.HF_HUB_OFFLINE and status is None):
        raise FileNotFoundError(
            f"{model}: no such directory, and not, or not all of it, in {constants.HF_HUB_CACHE}; HF_HUB_OFFLINE keeps "
            "from fetching it"
        ) from error
    if isinstance(cause, errors.RevisionNotFoundError):
        raise FileNotFoundError(f"{model}: no revision {model.revision} of {model.repo} on {endpoint()}") from error
    if isinstance(cause, errors.GatedRepoError):
        raise PermissionError(f"{model}: its owner has to let you in: {endpoint()}/{model.repo}") from error
    if status in (401, 403, 404):
        raise FileNotFoundError(
            f"{model}: no such directory, and no such model on {endpoint()}, or a private one: for that, "
            "`hf auth login`, or a token in HF_TOKEN that may"
        ) from error
    if status is not None:
        raise OSError(f"{model}: {endpoint()} answered {status}; try again later") from error
    if isinstance(cause, OSError) and cause.errno:  # of the file system: no room, no right to write
        raise OSError(cause.errno, cause.strerror, cause.filename or str(constants.HF_HUB_CACHE)) from error
    reason = f"{type(cause).__name__}: {' '.join(str(cause).split())}".rstrip(": ")
    raise OSError(
        f"{model}: no such directory, and not fetched from {endpoint()} ({reason}); what came whole is kept, try again"
    ) from error


def _is_ours(file: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        config = json.loads(file.read_text(encoding="utf-8"))
        return isinstance(config, dict) and isinstance(config.get("model"), dict)
    return False


def _check_content(model: HubId, file: Path) -> None:
    """Raise OSError where a large file is not what the hub has, and take it out of the cache.

    The library itself looks at sizes, and names large files by their SHA-256 where the file system has symbolic links.
    """
    if not file.is_symlink():
        return
    blob = file.parent / file.readlink()
    if not _SHA256.fullmatch(blob.name):
        return
    with open(blob, "rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() == blob.name:
            return
    for each in (file, blob):
        with contextlib.suppress(OSError):
            each.unlink()
    raise OSError(f"{model}: {file.name} came damaged, its SHA-256 is not that of the hub; it is removed, try again")
