"""Measurements against other code, in one run on one machine. Run from the root of the repository; see README.md."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if importlib.util.find_spec("tarflow") is None:  # a machine that has torch and the source, and nothing installed
    sys.path.insert(0, str(ROOT / "src"))
