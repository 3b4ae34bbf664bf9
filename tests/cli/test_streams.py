"""Standard streams that are closed, full or left, and that have not all letters: what stops, and what is said."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from tarflow import checkpoint
from tarflow.cli import COMMANDS, main

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
RECIPE = """
[model]
patch_size = 4
width = 64
layers = [1]
[training]
steps = 4
batch_size = 4
log_every = 1
evaluate_every = 2
evaluate_images = 4
sample_every = 0
"""
PLAN = ["plan", "digits", "--device", "h100"]


@contextlib.contextmanager
def broken() -> Iterator[TextIO]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        yield stream


@contextlib.contextmanager
def full() -> Iterator[TextIO]:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with open("/dev/full", "w", encoding="utf-8") as stream:
        yield stream


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """As `2>&-` leaves it."""
    yield None


@pytest.mark.parametrize("stderr", [broken, full, closed])
def test_training_goes_on_whoever_reads_what_it_says(
    stderr: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.toml").write_text(RECIPE)
    command = ["train", "--recipe", str(tmp_path / "small.toml"), "--data", "digits", "--out", str(tmp_path / "run")]
    with stderr() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main([*command, "--device", "cpu"]) == 0
        assert sys.stderr is stream
    latest = checkpoint.latest_checkpoint(tmp_path / "run")
    assert latest is not None and latest.name == "step-4"
    assert capsys.readouterr().out == "", "nor does a message end among the results"


@pytest.mark.parametrize("stderr", [broken, full, closed])
def test_an_error_nobody_can_be_told_has_its_code(stderr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with stderr() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["sample", "nowhere", "--out", "a.png"]) == 2


@pytest.mark.parametrize("command", [PLAN, ["--version"], [], ["train", "--help"], ["prepare", "--check", "prepared"]])
@pytest.mark.parametrize("stdout", [broken, full, closed])
def test_results_nobody_gets_are_an_error(
    stdout: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if "prepared" in command:
        assert main(["prepare", "digits", "--out", "prepared"]) == 0
        capsys.readouterr()
    with stdout() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        try:
            code = main(command)
        except SystemExit as stop:
            code = stop.code
    said = capsys.readouterr().err
    expected = {
        broken: (141, ""),
        full: (2, "tarflow: error: standard output: No space left on device\n"),
        closed: (0, ""),
    }
    assert (code, said) == expected[stdout]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_shown_in_every_encoding(command: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stdout = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and stdout.errors == "strict"
    text = written.getvalue().decode(encoding)
    assert f"tarflow {command}" in text and "\\u" not in text and "\\x" not in text
    if command == "train":
        assert ("σ of the gaussian noise" if encoding == "utf-8" else "sigma of the gaussian noise") in text


def test_names_that_are_no_text_are_their_bytes_among_results_and_readable_among_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tarflow.cli.streams import standard_streams

    written = io.BytesIO(), io.BytesIO()
    for name, file in zip(("stdout", "stderr"), written, strict=True):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding="utf-8"))
    name = os.fsdecode(b"caf\xe9/\xcf\x83")
    with standard_streams():
        for stream in (sys.stdout, sys.stderr):
            print(name, file=stream, flush=True)
    assert [file.getvalue() for file in written] == [b"caf\xe9/\xcf\x83\n", b"caf\\udce9/\xcf\x83\n"]
