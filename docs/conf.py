"""How Sphinx builds these pages: `make docs`, without a network."""

from __future__ import annotations

import re
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


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon, at 500
