"""Plants faults in a copy of the source, one at a time, and says which of them no test notices.

    python -m benchmarks.planted --out benchmarks/results/planted.json

Each fault of `planted.toml` is one that a person could make: a line that reads well, runs, and is wrong. It names the
tests that have to fail with it. A fault that they let pass has survived, and one whose text is no longer in the source
exactly once is stale: either is an exit code of 1. `--only WORD` plants those whose description or file has the word,
and `--tests` runs other tests on them, such as a whole room's, to see whether anybody knows a new fault. A file of
--out that is there already keeps what it has of the others. It forks, so it needs a system that can.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ROOT

TABLE = Path(__file__).with_name("planted.toml")
COPIED = ("src", "tests", "benchmarks", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
# What the tests import besides, and would import anew for each fault. Nothing of the package: a fault may be anywhere.
PRELOADED = (
    "PIL.Image",
    "safetensors.torch",
    "tyro",
    "rich.progress",
    "scipy.linalg",
    "sklearn.svm",
    "pyarrow.parquet",
)
OUTPUT = "pytest.txt"  # in the copy: what the tests of a fault said
SECONDS = 300  # that they may take


@dataclass(frozen=True)
class Fault:
    """One text of one file of the package in place of another.

    Attributes:
        what: that is wrong with it. file: below src/tarflow. find: in it once. replace: what is planted there.
        tests: files below tests/, or single tests, of which one at least has to fail.
    """

    what: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]

    def planted(self, text: str) -> str:
        """The file's text with the fault in it. Raises ValueError where `find` is not in it exactly once."""
        if (count := text.count(self.find)) != 1:
            raise ValueError(f"{self.file}: expected once, found {count} times: {self.find}")
        return text.replace(self.find, self.replace)


def read_faults(table: Path = TABLE) -> list[Fault]:
    """The faults of a table, in its order."""
    entries = tomllib.loads(table.read_text(encoding="utf-8"))["fault"]
    return [Fault(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def copy_tree(place: Path, root: Path = ROOT) -> Path:
    """A copy of what the tests need in `place`, so that the source itself is never touched."""
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        elif (root / name).exists():
            shutil.copy2(root / name, place / name)
    return place


def try_fault(fault: Fault, place: Path, tests: Sequence[str] = ()) -> str:
    """Plant a fault in the copy in `place`, run its tests (or others), and take it out again.

    "noticed", "survived", or "stale: …" where it cannot be planted, or its tests cannot be run, or do not end.
    """
    file = place / "src" / "tarflow" / fault.file
    sound = file.read_text(encoding="utf-8")
    try:
        file.write_text(fault.planted(sound), encoding="utf-8")
        return _verdict(place, tests or fault.tests)
    except ValueError as error:
        return f"stale: {error}"
    finally:
        file.write_text(sound, encoding="utf-8")


def _verdict(place: Path, tests: Sequence[str]) -> str:
    """What pytest makes of these tests: 0 is that all pass, 1 that one fails, and more that it could not run them.

    In a fork of this process, which has imported what takes longer than most of the tests.
    """
    process = get_context("fork").Process(target=_run, args=(place, [f"tests/{name}" for name in tests]))
    with warnings.catch_warnings(action="ignore"):  # newer versions of Python warn of forks beside threads
        process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
        return f"stale: no end after {SECONDS} seconds"
    if process.exitcode in (0, 1):
        return ("survived", "noticed")[process.exitcode]
    return f"stale: {' '.join((place / OUTPUT).read_text(encoding='utf-8', errors='replace').split())[-300:]}"


def _run(place: Path, tests: list[str]) -> None:
    """Run tests of the copy in this process, and end it with pytest's exit code."""
    with open(place / OUTPUT, "wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("benchmarks", "tarflow")]:
        del sys.modules[name]  # those of the copy are meant
    ours = {ROOT, ROOT / "src"}
    sys.path[:] = [str(place / "src"), *(entry for entry in sys.path if Path(entry or ".").resolve() not in ours)]
    sys.path_importer_cache.clear()
    sys.dont_write_bytecode = True  # of a file that changes within the second in which it is looked at
    os.environ |= {"PYTHONPATH": str(place / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.chdir(place)
    torch.set_num_threads(1)  # who computes with one misses none of the threads that a fork leaves behind
    options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    code = pytest.main([*options, *tests])
    sys.stdout.flush()
    os._exit(int(code))


def main(argv: Sequence[str] | None = None) -> int:
    """Try every fault, say how each fared, write the result, and say whether all were noticed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="faults whose description or file has one of these in it"
    )
    parser.add_argument("--tests", nargs="+", default=[], help="run these, below tests/, in place of each fault's own")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    args = parser.parse_args(argv)
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    faults = read_faults()
    found: dict[str, dict[str, Any]] = {}
    if args.out and args.out.exists():  # of those that are not tried now
        known = {fault.what for fault in faults}
        found = {entry["what"]: entry for entry in json.loads(args.out.read_text())["faults"] if entry["what"] in known}
    with tempfile.TemporaryDirectory() as temporary:
        place = copy_tree(Path(temporary))
        for fault in faults:
            if not any(word in fault.what or word in fault.file for word in args.only):
                continue
            started = time.monotonic()
            verdict = try_fault(fault, place, args.tests)
            tests = list(args.tests or fault.tests)
            found[fault.what] = {"what": fault.what, "file": fault.file, "tests": tests, "verdict": verdict}
            print(f"{verdict:9} {time.monotonic() - started:5.1f} s  {fault.file}: {fault.what}", flush=True)
            if args.out:  # as it goes: a run that is stopped leaves what it has
                in_order = [found[other.what] for other in faults if other.what in found]
                text = json.dumps(summary(in_order), indent=2, ensure_ascii=False)
                args.out.write_text(text + "\n", encoding="utf-8")
    counts = summary(list(found.values()))["verdicts"]
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())))
    return 0 if counts.keys() <= {"noticed"} else 1


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole result: how many fared how, and how many were planted in which room."""
    verdicts = Counter(entry["verdict"].partition(":")[0] for entry in found)
    rooms = Counter(entry["file"].rpartition("/")[0] or entry["file"] for entry in found)
    return {
        "what": __doc__.splitlines()[0],
        "command": "python -m benchmarks.planted",
        "verdicts": dict(sorted(verdicts.items())),
        "by_room": dict(sorted(rooms.items())),
        "faults": list(found),
    }


if __name__ == "__main__":
    sys.exit(main())
