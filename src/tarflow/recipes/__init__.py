"""Which experiments are there? One TOML file each, whose header gives the command, the cost and the expected score."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeAlias

from tarflow.config import ConfigError, DataConfig, TarFlowConfig, TrainingConfig

SECTIONS = {"model": TarFlowConfig, "data": DataConfig, "training": TrainingConfig}
Sections: TypeAlias = Mapping[str, Mapping[str, Any]]
"""A config that is not complete: fields by section, as a recipe has them. `training.setup.resolve` makes it a run's."""

_KEYS = re.compile(r"""[^\w."' \t-]+""")  # what is between keys, which may be tables in one another
MOST_TABLES = 100
EXPECTS = ("images", "image_size", "channels", "num_classes")  # what the section `expects` may say of the data


def names() -> list[str]:
    """The recipes that come with the package, in alphabetical order.

    >>> "digits" in names()
    True
    """
    files = (entry.name for entry in resources.files(__name__).iterdir())
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def load(name_or_path: str | Path) -> dict[str, dict[str, Any]]:
    """The sections of a recipe, by its name or by the path of a `.toml` file; a section it lacks is empty.

    Its section `expects` is left out: it decides nothing, see `expects`.

    The fields are those of `TarFlowConfig`, `DataConfig` and `TrainingConfig`, and are checked when these are built
    from them. What follows from the data (image size, channels, classes) may be missing.

    Raises `ConfigError`: an unknown name, a file that is not there or is not TOML, an unknown section.

    >>> load("digits")["model"]["patch_size"]
    2
    """
    origin, sections = _read(name_or_path)
    for section, values in sections.items():
        if section not in (*SECTIONS, "expects"):
            raise ConfigError(f"{origin}: {section}: no such section; known: {', '.join(SECTIONS)}")
        if not isinstance(values, dict):
            raise ConfigError(f"{origin}: {section}: expected a section [{section}] of fields, got {values!r}")
    return {section: sections.get(section, {}) for section in SECTIONS}


def expects(name_or_path: str | Path) -> dict[str, int]:
    """What a recipe says of the data that it is for, so that a run can be planned without them: see `EXPECTS`.

    Training takes all of this from the data themselves. Raises as `load`, and for a field or a value that is none.

    >>> expects("cifar10")
    {'images': 50000, 'image_size': 32, 'channels': 3, 'num_classes': 10}
    """
    origin, sections = _read(name_or_path)
    values = sections.get("expects", {})
    for name, value in values.items():
        if name not in EXPECTS:
            raise ConfigError(f"{origin}: expects.{name}: no such field; known: {', '.join(EXPECTS)}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{origin}: expects.{name}: expected a positive number, got {value!r}")
    return dict(values)


def with_fields(sections: Sections, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections with other values of some fields, each in the section that has it; ConfigError where none has.

    `steps` alone take the place of `epochs`, and `epochs` alone that of `steps`.

    >>> with_fields({"training": {"epochs": 2}}, {"steps": 100, "width": 64})
    {'model': {'width': 64}, 'data': {}, 'training': {'steps': 100}}
    """
    found = {name: dict(sections.get(name) or {}) for name in SECTIONS}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if one in values and other not in values:
            found["training"].pop(other, None)
    for name, value in values.items():
        section = next((s for s, cls in SECTIONS.items() if name in {entry.name for entry in fields(cls)}), None)
        if section is None:
            raise ConfigError(f"{name}: no such field of a run; see `tarflow train --help`")
        found[section][name] = value
    return found


def _read(name_or_path: str | Path) -> tuple[str, dict[str, Any]]:
    """What the messages call a recipe, and everything in its file."""
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
        text = file.read_text(encoding="utf-8")
        if any(key.count(".") > MOST_TABLES for key in _KEYS.split(text)):  # for which tomllib takes gigabytes
            raise RecursionError
        sections = tomllib.loads(text)
    except (ValueError, OSError) as error:  # of syntax, of encoding, of numbers with thousands of digits
        raise ConfigError(f"{origin}: not a readable TOML file: {error}") from None  # tomllib says at which line
    except RecursionError:
        raise ConfigError(f"{origin}: not a readable TOML file: tables or lists nested too deep") from None
    return origin, sections
