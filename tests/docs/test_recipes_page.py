"""docs/recipes.md holds what the headers of the recipes say; `TARFLOW_WRITE_DOCS=1 pytest` on this file writes it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tarflow import recipes

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "recipes.md"
MARK = "<!-- The rest is written by tests/docs/test_recipes_page.py. -->\n"


def section(name: str) -> str:
    """A recipe's header as a section of the page."""
    header = (ROOT / "src/tarflow/recipes" / f"{name}.toml").read_text().partition("\n\n")[0]
    lines = [line.removeprefix("#").rstrip() for line in header.splitlines()]
    text = "\n".join(line.removeprefix(" ") for line in lines)
    title, _, rest = text.partition("\n\n")
    facts = re.findall(r"^(Source|Command|Cost|Expected):\s+(.*(?:\n\s+.*)*)", rest, re.MULTILINE)
    assert [fact for fact, _ in facts] == ["Source", "Command", "Cost", "Expected"], name
    shown = {fact: " ".join(value.split()) for fact, value in facts}
    rows = "\n".join(f"- {fact}: {shown[fact]}" for fact in ("Source", "Cost", "Expected"))
    command = f"<!-- not run: far too long for a test -->\n\n```shell\n{shown['Command']}\n```"
    return f"\n## {name}\n\n{' '.join(title.split())}\n\n{command}\n\n{rows}\n"


def test_the_page_holds_every_header() -> None:
    kept = PAGE.read_text().partition(MARK)[0]
    wanted = kept + MARK + "".join(section(name) for name in recipes.names())
    if os.environ.get("TARFLOW_WRITE_DOCS"):
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted
