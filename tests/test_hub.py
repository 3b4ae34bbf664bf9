"""Which arguments name a model of the hub, and what is said of one where the library is not installed.

What is fetched and how is in `tests/hub/`, which needs the library.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tarflow
from tarflow import hub, pretrained
from tarflow.cli import main
from tarflow.evaluation.likelihood.anomalies import DETECTOR_FILE
from tarflow.evaluation.quality.judge import QUALITY_FILE
from tarflow.hub import FILES, KEPT, HubId, hub_id
from tarflow.kept import SETTING_FILE


def test_ids_and_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("alice/a.b-c_d") == HubId("alice/a.b-c_d") == hub_id("hub:alice/a.b-c_d")
    assert hub_id("alice/flowers@refs/pr/1") == HubId("alice/flowers", "refs/pr/1")
    for text in ("digits", "./alice/flowers", "a/b/c", "/a/b", "a/b@", "a/b@c@d", "a /b", "a/.b", "../b", "a/b\n", ""):
        assert hub_id(text) is None, text
        with pytest.raises(ValueError, match="expected hub:OWNER/NAME"):
            hub_id(f"hub:{text}")
    (tmp_path / "runs").mkdir()
    assert hub_id("runs/digitz") is None and hub_id("hub:runs/digitz") == HubId("runs/digitz")


def test_the_files_are_those_that_commands_keep() -> None:
    assert set(KEPT) == {SETTING_FILE, DETECTOR_FILE, QUALITY_FILE}
    assert FILES[:2] == (pretrained.CONFIG_FILE, pretrained.WEIGHTS_FILE)
    assert not any(name.endswith((".pt", ".pth", ".bin", ".pkl")) for name in FILES)


def test_without_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for run in ("alice/flowers", "hub:alice/flowers", "alice/flowers@v1"):
        assert main(["sample", run, "-n", "2", "--out", "out.png"]) == 2
        name = run.removeprefix("hub:")
        assert capsys.readouterr().err == (
            f"tarflow: error: {name}: no such directory, and a model of the hub needs huggingface_hub: "
            "pip install 'tarflow[hub]'\n"
        )
    with pytest.raises(FileNotFoundError, match="pip install"):
        tarflow.TarFlow.from_pretrained("alice/flowers")


def test_the_directory_of_a_model_of_the_hub_is_known_by_its_name() -> None:
    place = Path("/c/hub/models--alice--a--b/snapshots/0123")
    assert hub.name_of(place) == "alice/a--b"
    for other in (place.parent, place.parent.parent / "blobs" / "0123", Path("/c/datasets--a--b/snapshots/1"), Path()):
        assert hub.name_of(other) is None
