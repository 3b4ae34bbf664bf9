"""Spoilt files, one of each kind every day and seven more among the slow tests; and that the fuzzer can fail."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from benchmarks import fuzz
from benchmarks.corpus import SLOW, build, hostile_subjects, subjects
from benchmarks.mutations import BYTES, JSON, JSON_LINES, TEXT, mutate
from tarflow import cli

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the fuzzer forks, and this system cannot")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    build(root)
    return root


def broken(place: Path, seeds: list[int | None], kinds: list[str] | None = None) -> list[str]:
    """What broke the promise, of these kinds of file, or all that are spoilt at random, with these seeds."""
    wanted = [(kind, seed) for kind in kinds or subjects() for seed in seeds]
    found = list(fuzz.run_cases(place, wanted))
    assert [(case["kind"], case["seed"]) for case in found] == wanted
    return [f"{case['kind']} {case['seed']}: {case['problem']}" for case in found if case["problem"]]


def test_spoilt_files_are_one_line_each(place: Path) -> None:
    assert broken(place, [0]) == []


@pytest.mark.slow
def test_many_spoilt_files_are_one_line_each(place: Path) -> None:
    assert len(subjects()) * 8 >= 200
    assert broken(place, [None]) == [], "good files are accepted"
    assert broken(place, list(range(1, 8))) == []


def test_files_that_mean_harm_are_one_line_each(place: Path) -> None:
    assert broken(place, [0], [kind for kind in hostile_subjects() if kind not in SLOW]) == []


@pytest.mark.slow
def test_many_files_that_mean_harm_are_one_line_each(place: Path) -> None:
    # A good extractor is a file of 95 MB.
    good = [kind for kind in hostile_subjects() if kind not in SLOW and kind != "hostile extractor"]
    assert broken(place, [None], good) == [], "good files are accepted"
    assert broken(place, list(range(1, 4)), list(hostile_subjects())) == []


def test_the_fuzzer_sees_what_breaks_the_promise(place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def command(name: str):  # type: ignore[no-untyped-def]
        def main(argv: list[str]) -> int:
            if name == "traceback":
                raise KeyError(name)
            if name == "hang":
                time.sleep(60)
            if name == "death":
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "memory":
                assert len(b"x" * (fuzz.MEMORY + (64 << 20)))
            if name == "silence":
                return 2
            if name == "stdout":
                print("result")
            if name == "changed":
                Path(argv[1], "config.json").unlink()
            return cli._fail("a message long enough to be one")

        return main

    monkeypatch.setattr(fuzz, "MEMORY", 64 << 20)
    for name, words in {
        "none": None,
        "traceback": "exit code None",
        "hang": "no end after",
        "death": "the process died",
        "memory": "MiB of memory",
        "silence": "not one line on stderr alone",
        "stdout": "not one line on stderr alone",
        "changed": "files changed",
    }.items():
        monkeypatch.setattr(fuzz, "SECONDS", 0.5 if name == "hang" else 60.0)
        monkeypatch.setattr(cli, "main", command(name))
        (case,) = fuzz.run_cases(place, [("config.json", 0)])
        assert (case["problem"] is None) if words is None else words in case["problem"], (name, case["problem"])


@pytest.mark.parametrize("ways", [BYTES, TEXT, JSON, JSON_LINES], ids=["bytes", "text", "json", "lines"])
def test_a_seed_is_a_mutation_and_never_none(ways: tuple[object, ...]) -> None:
    data = b'{"a": [1, 2.5, "x"], "b": {"c": true}}\n' * 2 if ways is JSON_LINES else b'{"a": [1, 2.5], "b": true}'
    for seed in range(100):
        first, second = (mutate(data, random.Random(seed), ways) for _ in range(2))  # type: ignore[arg-type]
        assert first == second != data
