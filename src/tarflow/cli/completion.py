"""`tarflow --print-completion SHELL`: a script by which a shell completes commands and options, from tyro."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import operator
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from tarflow.cli import COMMANDS

SHELLS = ("bash", "zsh")
FILES = "complete -o default -F _tyro_tarflow tarflow\n"  # names of files where there is nothing else: a RUN, a PATH


def script(shell: str) -> str:
    """The script for a shell. Raises ValueError for one that is not known."""
    if shell not in SHELLS:
        raise ValueError(f"--print-completion: expected {' or '.join(SHELLS)}, got {shell!r}")
    kinds: list[Any] = [
        Annotated[options_of(name), subcommand(name, description=text)] for name, text in COMMANDS.items()
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(functools.reduce(operator.or_, kinds), prog="tarflow", args=["--tyro-print-completion", shell])
    return printed.getvalue() + (FILES if shell == "bash" else "")


def options_of(command: str) -> Any:
    """The dataclass of the options of a command, as they are where nothing is typed yet."""
    module = importlib.import_module(f"tarflow.cli.{command}")
    follow = getattr(module, "options", None)
    return follow([]) if follow else getattr(module, command.capitalize())
