"""Measurements against other code, in one run on one machine. Run from the root of the repository; see README.md."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What is measured is the source beside this folder: not another copy that is installed, and none need be.
if str(ROOT / "src") not in sys.path:
    sys.path.insert(0, str(ROOT / "src"))
