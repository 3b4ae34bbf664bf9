"""Rows of a benchmark in a JSON file, written one by one, so that one that was stopped goes on where it was."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def device_name() -> str:
    """The processor, in words."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Which Python and which packages there are; those that are missing are left out."""
    found = {"python": platform.python_version()}
    for name in ("torch", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class KeptRows:
    """The rows of a result, on disk after each, if there is a file at all.

    Args:
        path: the file, whose rows are taken up if they were measured under the same `setting`; None keeps nothing.
        setting: what all rows have in common, such as the time of a training.
        packages: whose versions are told.
    """

    def __init__(self, path: Path | None, setting: Mapping[str, Any], packages: tuple[str, ...] = ()) -> None:
        self.path, self.rows = path, list[Row]()
        self.head: dict[str, Any] = {
            "command": " ".join(["python -m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
            "device": device_name(),
            "threads": torch.get_num_threads(),
            "versions": versions(*packages),
            "setting": dict(setting),
        }
        if path is not None and path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            if there["setting"] != self.head["setting"]:
                raise SystemExit(f"--out {path}: measured under {there['setting']}; give another file")
            self.rows = there["rows"]

    def measured(self, key: Mapping[str, Any], measure: Callable[[], Row]) -> Row:
        """The row with these values, measured and written if it is not there yet."""
        for row in self.rows:
            if all(row[name] == value for name, value in key.items()):
                return row
        row = {**key, **measure()}
        self.rows.append(row)
        told = {name: value for name, value in row.items() if not isinstance(value, list | dict)}
        print(json.dumps(told), flush=True)
        if self.path is not None:
            self.path.write_text(json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        return row
