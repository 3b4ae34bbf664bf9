"""The table of planted faults fits the source of today, and the planter can tell who noticed and who did not."""

from __future__ import annotations

import ast
import os
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import ROOT, planted
from benchmarks.planted import Fault, read_faults, try_fault

FAULTS = read_faults()
ROOMS = ("model", "sampling", "data", "evaluation", "training", "planning", "report", "cli")


def problem_of(fault: Fault) -> str | None:
    """Why a fault cannot be planted and noticed."""
    try:
        spoilt = fault.planted((ROOT / "src" / "tarflow" / fault.file).read_text(encoding="utf-8"))
        compile(spoilt, fault.file, "exec", ast.PyCF_ONLY_AST)
    except (ValueError, OSError, SyntaxError) as error:
        return str(error)
    if fault.find == fault.replace or not fault.tests:
        return "changes nothing, or nobody is to notice it"
    for name in fault.tests:
        file, _, test = name.partition("::")
        path = ROOT / "tests" / file
        if not path.exists() or (test and f"def {test}(" not in path.read_text(encoding="utf-8")):
            return f"no such test: {name}"
    return None


def test_every_fault_can_be_planted_and_its_tests_are_there() -> None:
    """Where a line was changed, so has its entry to be: or it goes, where the mistake has become impossible."""
    assert {fault.what: problem for fault in FAULTS if (problem := problem_of(fault))} == {}


def test_there_are_faults_in_every_room_and_none_twice() -> None:
    rooms = Counter(fault.file.partition("/")[0] for fault in FAULTS)
    assert all(rooms[room] >= 5 for room in ROOMS), rooms
    assert {"storage.py", "checkpoint.py", "interop.py", "seeding.py"} <= rooms.keys()
    assert len({fault.what for fault in FAULTS}) == len(FAULTS) >= 100
    assert len({(fault.file, fault.find, fault.replace) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the planter forks, and this system cannot")
def test_the_planter_sees_who_notices_and_leaves_the_copy_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "src" / "tarflow").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "src" / "tarflow" / "__init__.py").touch()
    source = tmp_path / "src" / "tarflow" / "sums.py"
    source.write_text("def total(numbers):\n    return sum(numbers)\n")
    (tmp_path / "tests" / "test_sums.py").write_text(
        "from tarflow.sums import total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n\n\n"
        "def test_nothing():\n    assert total([]) == 0\n"
    )

    def verdict(find: str, replace: str, *tests: str) -> str:
        return try_fault(Fault("a fault", "sums.py", find, replace, tests), tmp_path)

    assert verdict("sum(numbers)", "max(numbers)", "test_sums.py") == "noticed"
    assert verdict("sum(numbers)", "max(numbers, default=0)", "test_sums.py::test_total") == "noticed"
    assert verdict("sum(numbers)", "max(numbers, default=0)", "test_sums.py::test_nothing") == "survived"
    stale = verdict("product(numbers)", "1", "test_sums.py")
    assert stale == "stale: sums.py: expected once, found 0 times: product(numbers)"
    assert verdict("sum(numbers)", "1", "test_other.py").startswith("stale: ")
    assert source.read_text() == "def total(numbers):\n    return sum(numbers)\n"


def test_the_exit_code_says_whether_all_were_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = {"one": "noticed", "two": "survived", "three": "stale: gone"}
    faults = [Fault(what, f"{what}.py", "a", "b", ("test_storage.py",)) for what in verdicts]
    monkeypatch.setattr(planted, "PRELOADED", ())
    monkeypatch.setattr(planted, "read_faults", lambda: faults)
    monkeypatch.setattr(planted, "copy_tree", lambda place: place)
    monkeypatch.setattr(planted, "try_fault", lambda fault, place, tests: verdicts[fault.what])
    assert planted.main(["--only", "one"]) == 0
    assert planted.main(["--only", "two"]) == planted.main(["--only", "three"]) == 1
    assert planted.main(["--out", str(tmp_path / "found.json")]) == 1
    assert "1 noticed, 1 stale, 1 survived" in capsys.readouterr().out
    assert '"survived": 1' in (tmp_path / "found.json").read_text()
