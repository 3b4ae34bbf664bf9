"""Which experiments are there? One TOML file each, whose header gives the command, the cost and the expected score."""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from tarflow.config import ConfigError

SECTIONS = ("model", "data", "training")


def names() -> list[str]:
    """The recipes that come with the package, in alphabetical order.

    >>> "digits" in names()
    True
    """
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def load(name_or_path: str | Path) -> dict[str, dict[str, Any]]:
    """The sections of a recipe, by its name or by the path of a `.toml` file; a section it lacks is empty.

    The fields are those of `TarFlowConfig`, `DataConfig` and `TrainingConfig`, and are checked when these are built
    from them. What follows from the data (image size, channels, classes) may be missing.

    Raises `ConfigError`: an unknown name, a file that is not there or is not TOML, an unknown section.

    >>> load("digits")["model"]["patch_size"]
    2
    """
    name = str(name_or_path)
    known = names()
    file: Traversable
    if name.endswith(".toml"):
        origin, file = name, Path(name_or_path)
        if not file.is_file():
            raise ConfigError(f"{origin}: no such file; recipes that come with the package: {', '.join(known)}")
    elif name in known:
        origin, file = f"recipe {name}", resources.files(__name__) / f"{name}.toml"
    else:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"perhaps {near[0]}? " if near else ""
        raise ConfigError(
            f"recipe {name}: no such recipe; {hint}known: {', '.join(known)}, or the path of a .toml file"
        )
    try:
        sections = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{origin}: not a readable TOML file: {error}") from None  # tomllib says at which line
    for section, values in sections.items():
        if section not in SECTIONS:
            raise ConfigError(f"{origin}: {section}: no such section; known: {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{origin}: {section}: expected a section [{section}] of fields, got {values!r}")
    return {section: sections.get(section, {}) for section in SECTIONS}
