"""Rows of a benchmark in a JSON file, written one by one, so that one that was stopped goes on where it was."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

Row = dict[str, Any]


def parser(name: str, doc: str | None, seconds: float) -> argparse.ArgumentParser:
    """Of the benchmark `name`: `--seconds` of a training, `--seeds` and `--out`, to which it adds its own."""
    made = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--seconds", type=float, default=seconds, help="processor time of one training")
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--out", type=Path, help="the file of the rows; those that it has are not measured again")
    return made


def device_name() -> str:
    """The processor, in words."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Which Python and which packages there are; those that are missing are left out."""
    found = {"python": platform.python_version()}
    for name in ("torch", "tarflow", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class KeptRows:
    """The rows of a result, on disk after each, if there is a file at all.

    Args:
        name: of the benchmark. path: the file, whose rows are taken up if they were measured under the same `setting`;
            None keeps nothing.
        setting: what all rows have in common, such as the time of a training, by the names of the options.
        packages: whose versions are told, besides torch's.
    """

    def __init__(self, name: str, path: Path | None, setting: Mapping[str, Any], *packages: str) -> None:
        self.path, self.rows = path, list[Row]()
        self.head: dict[str, Any] = {
            "command": " ".join(
                [f"python -m benchmarks.{name}", *(f"--{key} {value}" for key, value in setting.items())]
            ),
            "device": device_name(),
            "threads": torch.get_num_threads(),
            "versions": versions(*packages),
            "setting": dict(setting),
        }
        if path is not None and path.exists():
            there = json.loads(path.read_text(encoding="utf-8"))
            if there["setting"] != self.head["setting"]:
                raise SystemExit(f"--out {path}: measured under {there['setting']}; give another file")
            self.rows = there.pop("rows")
            there["versions"] |= self.head["versions"]  # where a package is missing now, it was there before
            self.head = there | {"command": self.head["command"]}

    def found(self, key: Mapping[str, Any]) -> Row | None:
        """The first row with these values."""
        return next((row for row in self.rows if all(row[name] == value for name, value in key.items())), None)

    def measured(self, key: Mapping[str, Any], measure: Callable[[], Row]) -> Row:
        """The row with these values, measured and written if it is not there yet."""
        row = self.found(key)
        if row is None:
            row = {**key, **measure()}
            self.add(row)
        return row

    def add(self, row: Row) -> None:
        """Print and write one more."""
        self.rows.append(row)
        told = {name: value for name, value in row.items() if not isinstance(value, list | dict)}
        print(json.dumps(told), flush=True)
        self.write()

    def tell(self, **facts: Any) -> None:
        """Keep what is true of all rows beside them."""
        self.head |= facts
        self.write()

    def write(self) -> None:
        if self.path is not None:
            self.path.write_text(json.dumps({**self.head, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and deviation of one, as a table says it; - of none."""
    if not values:
        return "-"
    said = f"{mean(values):.{digits}f}"
    return f"{said} ± {stdev(values):.{digits}f}" if len(values) > 1 else said
