"""What the README shows works: its Python runs, its commands parse, its links and pictures exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tarflow import recipes
from tarflow.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def indented_commands(text: str) -> list[str]:
    return [line.strip().split("  #")[0] for line in text.splitlines() if line.startswith("    tarflow ")]


def test_the_python_of_the_readme_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["log_p"].shape == (5,)  # type: ignore[attr-defined]
    assert names["images"].shape == (16, 1, 8, 8)  # type: ignore[attr-defined]
    assert names["z"].shape == (5, 16, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_shown_parses(document: Path) -> None:
    import importlib

    from tarflow.cli import parse

    for command in indented_commands(document.read_text()):
        words = shlex.split(command, comments=True)[1:]
        if words[0] in COMMANDS and "COMMAND" not in command:
            module = importlib.import_module(f"tarflow.cli.{words[0]}")
            assert parse(module.options(words[1:]), words[1:], f"tarflow {words[0]}") is not None, command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), target


def test_the_readme_names_every_recipe() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in recipes.names() if f"`{name}`" not in text] == []
