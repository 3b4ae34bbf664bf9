"""The folder of a Space: what the hub reads of it, and that its page starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest

import tarflow
from tarflow import __version__, pretrained
from tarflow.cli import main
from tarflow.pretrained import CARD_FILE, WEIGHTS_FILE, read_card
from tarflow.sharing.space import APP, GRADIO, MODEL, PYTHON, REQUIREMENTS

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_space_is_what_the_hub_starts(tmp_path: Path) -> None:
    out = tmp_path / "space"
    words = ("--title", "Small: digits", "--licence", "MIT")
    assert main(["space", "digits", "--out", str(out), *words]) == 0
    assert sorted(file.name for file in out.iterdir()) == sorted([CARD_FILE, APP, REQUIREMENTS, MODEL])
    facts = {"title": "Small: digits", "sdk": "gradio", "sdk_version": GRADIO, "python_version": PYTHON}
    assert read_card(out / CARD_FILE) == facts | {"app_file": APP, "license": "mit"}
    assert (out / REQUIREMENTS).read_text() == f"tarflow[ui]=={__version__}\n"
    compile((out / APP).read_text(), APP, "exec")
    own, copy = tarflow.open_run("digits"), tarflow.open_run(out / MODEL)
    assert (out / MODEL / WEIGHTS_FILE).read_bytes() == (pretrained.ROOT / "digits" / WEIGHTS_FILE).read_bytes()
    assert copy.config == own.config and copy.setting == own.setting


def test_what_can_be_left_out_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = "tarflow[ui] @ https://example.org/tarflow.whl"
    assert main(["space", "digits", "--out", "space", "--requirement", address]) == 0
    card = read_card(Path("space") / CARD_FILE)
    assert card["title"] == "digits" and "license" not in card
    assert (Path("space") / REQUIREMENTS).read_text() == f"{address}\n"


def test_the_versions_are_those_that_are_tested() -> None:
    assert f"gradio=={GRADIO}\n" in (ROOT / "constraints.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={PYTHON}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--licence", "my own"], "licence: expected it as the hub names it"),
        (["--title", " "], "--title: expected a line of text"),
        (["--requirement", "a\nb"], "--requirement: expected a line of text"),
    ],
)
def test_what_cannot_be_said(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["space", "digits", "--out", str(tmp_path / "space"), *words]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "space").exists()


def test_nothing_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["space", "digits", "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path}: holds 1 entry already" in capsys.readouterr().err


@pytest.mark.extra
def test_the_page_starts_from_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="pip install 'tarflow[ui]'")
    assert main(["space", "digits", "--out", str(tmp_path / "space")]) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "TARFLOW_CACHE": str(tmp_path / "c"),
    }
    app = subprocess.Popen(
        [sys.executable, APP], cwd=tmp_path / "space", env=os.environ | settings, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline, page = time.monotonic() + 300, ""
        while not page and app.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
                    page = answer.read().decode()
            except OSError:
                time.sleep(0.2)
        assert "gradio" in page and f"tarflow · {MODEL}" in page, app.poll()
    finally:
        app.terminate()
        assert app.stderr is not None
        said = app.communicate(timeout=60)[1]
    assert "Traceback" not in said
