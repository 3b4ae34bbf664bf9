"""How Sphinx builds these pages: `make docs`, without a network."""

from __future__ import annotations

import json
import re
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser

import tarflow

project = "tarflow"
author = "The tarflow authors"
release = tarflow.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "smartquotes"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"tarflow {release}"
html_copy_source = False
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]

default_role = "literal"  # docstrings quote code with single backticks, as Markdown does


def plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read as they are: an indented paragraph is a formula, and | and * are themselves."""
    marked: list[str] = []
    formula = example = False
    for before, line in zip(["", *lines], lines, strict=False):
        text = [kept for kept in marked if kept.strip()]
        if line.strip() and not line.startswith(" "):
            formula = False
        if line.startswith("    ") and not before.strip() and text and not text[-1].startswith(" "):
            marked += ["::", ""]
            formula = True
        example = line.startswith(">>>") or (example and bool(line.strip()))
        if not (formula or example):
            parts = re.split(r"(`[^`]*`|\*\w[\w ]*\*)", line)  # every second one is code, or emphasis
            line = "".join(part if k % 2 else re.sub(r"([|*])", r"\\\1", part) for k, part in enumerate(parts))
        marked.append(line)
    lines[:] = marked


class NotebookParser(MystParser):
    """A notebook as the page that it would be in Markdown: its cells, and the text and the pictures that it holds."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        pieces = []
        for cell in json.loads(inputstring)["cells"]:
            source = "".join(cell["source"])
            pieces.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
            for output in cell.get("outputs", []):
                if png := output.get("data", {}).get("image/png"):
                    words = "".join(output["data"]["text/plain"]).strip("<>")
                    pieces.append(f'<img src="data:image/png;base64,{"".join(png).strip()}" alt="{words}">')
                elif text := "".join(output.get("text", [])).rstrip():
                    pieces.append(f"```text\n{text}\n```")
        super().parse("\n\n".join(pieces) + "\n", document)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon, at 500
