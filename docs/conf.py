"""How Sphinx builds these pages: `make docs`, without a network."""

from __future__ import annotations

from typing import Any

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


def formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """An indented paragraph of a docstring is a formula: to be shown as it is written."""
    marked: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        text = [kept for kept in marked if kept.strip()]
        if line.startswith("    ") and not before.strip() and text and not text[-1].startswith(" "):
            marked += ["::", ""]
        marked.append(line)
    lines[:] = marked


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", formulas, priority=400)  # before napoleon, at 500
