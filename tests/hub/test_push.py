"""Pushing a run to a hub on this machine, and loading it from there: the same flow, the same samples, bit for bit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tarflow
from hub_server import TOKEN, Hub, Repo
from small_runs import train, write_images
from tarflow import pretrained
from tarflow.cli import main
from tarflow.kept import SOLVERS_FILE
from tarflow.pretrained import card_text, read_card

pytestmark = [
    pytest.mark.extra,
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),  # of the library's own uploads
]
NAME = "alice/flowers"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on images whose names and place are nobody's business."""
    place = tmp_path_factory.mktemp("secret-client")
    assert train(write_images(place / "secret-photos", 40), place / "run") == 0
    return place / "run"


def push(run: Path | str, *words: str, name: str = NAME) -> int:
    return main(["push", str(run), name, "--licence", "mit", "--samples", "2", *words])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1].removeprefix("tarflow: error: ")


def files_of(run: Path) -> list[Path]:
    """What a run holds, but for what its first drawing measures and keeps, whichever test it is that draws first."""
    return sorted(path for path in run.rglob("*") if path.name != SOLVERS_FILE)


def test_what_is_pushed_and_loaded_is_the_run(
    run: Path, hub: Hub, logged_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert push(run, "--data", "Forty squares of noise") == 0
    (address,) = capsys.readouterr().out.splitlines()
    repo = hub.repos[NAME]
    assert address == f"{hub.url}/{NAME}/commit/{repo.branches['main']}" and not repo.private
    files = repo.commits[repo.branches["main"]]
    assert sorted(files) == [".gitattributes", "README.md", "config.json", "model.safetensors", "samples.png"]
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    for name, content in files.items():
        assert b"secret-client" not in content and str(run.parent).encode() not in content, name
    assert b"secret-photos" not in files["README.md"] and b"Forty squares of noise" in files["README.md"]

    own, loaded = tarflow.open_run(run), tarflow.open_run(NAME)
    assert loaded.path != own.path
    for key, tensor in own.flow.state_dict().items():
        assert torch.equal(loaded.flow.state_dict()[key], tensor)
    assert torch.equal(loaded.sample(n=3, seed=7, solver="sequential"), own.sample(n=3, seed=7, solver="sequential"))
    images = own.images().held_out.images
    assert torch.equal(loaded.score(images, draws=1), own.score(images, draws=1))
    assert loaded.config.training == own.config.training


def test_the_round_trip_of_programs_that_know_the_address_from_the_environment(hub: Hub, tmp_path: Path) -> None:
    """As users run it: a process each, with HF_ENDPOINT and the library's own switches."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | {"HF_TOKEN": TOKEN}

    def tarflow_command(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tarflow", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment | more, cwd=tmp_path)

    pushed = tarflow_command("push", "digits", NAME, "--licence", "mit", "--samples", "0", "--private")
    assert pushed.returncode == 0 and pushed.stdout.startswith(f"{hub.url}/{NAME}/commit/"), pushed.stderr
    assert hub.repos[NAME].private
    drawn = tarflow_command("sample", NAME, "-n", "3", "--solver", "sequential", "--out", "a.npz")
    assert drawn.returncode == 0 and "Traceback" not in drawn.stderr, drawn.stderr
    assert main(["sample", "digits", "-n", "3", "--solver", "sequential", "--out", "b.npz"]) == 0
    for name in ("images", "labels"):
        assert np.array_equal(np.load(tmp_path / "a.npz")[name], np.load("b.npz")[name])
    cold = tarflow_command("sample", NAME, "--out", "d.npz", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "other"))
    assert cold.returncode == 2 and cold.stderr.count("\n") == 1 and "HF_HUB_OFFLINE" in cold.stderr


def test_a_branch_and_a_second_push(run: Path, hub: Hub, logged_in: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run) == 0 and push("digits", "--revision", "small") == 0
    repo = hub.repos[NAME]
    assert tarflow.open_run(NAME).config.model.image_size == 4
    assert tarflow.open_run(f"{NAME}@small").config.model.image_size == 8
    before = dict(repo.branches)
    assert push(run) == 0 and repo.branches == before  # nothing has changed
    assert push(run, "--revision", "x", name=f"{NAME}@small") == 2
    assert error_of(capsys).startswith("--revision x: alice/flowers@small names one already")


def test_private_is_never_public(run: Path, hub: Hub, logged_in: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(run, "--private") == 0 and hub.repos[NAME].private
    hub.repos["alice/open"] = Repo()
    hub.repos["alice/open"].commit("main", {"README.md": b"old"})
    assert push(run, "--private", name="alice/open") == 2
    assert error_of(capsys).startswith("alice/open: there already, and public; nothing was pushed")
    assert len(hub.repos["alice/open"].commits) == 1


@pytest.mark.parametrize(
    ("token", "fail", "message"),
    [
        (None, None, "not logged in to"),
        ("hf_wrong", None, "answered 401: the token may not write there"),
        (TOKEN, ("POST", "/api/repos/create", 403), "answered 403: the token may not write there"),
        (TOKEN, ("POST", "/commit/", 500), "not pushed, .* answered 500.*; try again later"),
        (TOKEN, ("PUT", "/put/", 500), "not pushed, .* answered 500"),
        (TOKEN, ("POST", "/preupload/", 503), "not pushed, .* answered 503"),
        (TOKEN, ("POST", "/commit/", 413), "not pushed, .* answered 413"),
    ],
)
def test_a_push_that_fails_is_one_line_and_nobody_sees_a_part_of_it(
    token: str | None,
    fail: tuple[str, str, int] | None,
    message: str,
    run: Path,
    hub: Hub,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts of the library
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    if fail:
        hub.fail = lambda method, path: fail[2] if method == fail[0] and fail[1] in path else None
    before = files_of(run)
    capsys.readouterr()
    assert push(run) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err
    line = captured.err.splitlines()[-1]
    assert line.startswith(f"tarflow: error: {NAME}: ")
    assert re.search(message, line), line
    assert NAME not in hub.repos or hub.repos[NAME].files("main") == (
        hub.repos[NAME].branches["main"],
        {".gitattributes": b"*.safetensors filter=lfs\n"},
    )
    assert files_of(run) == before


def test_offline_and_without_the_library(
    run: Path, hub: Hub, logged_in: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(run) == 2 and "HF_HUB_OFFLINE keeps from it" in error_of(capsys)
    hub.close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    from huggingface_hub import close_session

    close_session()
    assert push(run) == 2 and f"not pushed to {hub.url} (ConnectError" in error_of(capsys)


def test_a_card_that_the_hub_refuses(run: Path, hub: Hub, logged_in: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), NAME, "--licence", "nobodys", "--samples", "0"]) == 0  # this hub takes any
    hub.licences = {"mit"}
    assert main(["push", str(run), NAME, "--licence", "nobodys", "--samples", "0"]) == 2
    assert '"license" must be one of' in error_of(capsys)


# --- files of the library's own mixin --------------------------------------------------------------------------------


def test_the_mixin_of_the_library_reads_our_files_and_we_read_its(run: Path, hub: Hub, logged_in: None) -> None:
    from huggingface_hub import PyTorchModelHubMixin

    class Flow(PyTorchModelHubMixin, tarflow.TarFlow):  # type: ignore[misc]
        """The sections of `config.json` are the arguments of a class, for the mixin."""

        def __init__(self, model: dict, data: dict | None = None, training: dict | None = None) -> None:  # type: ignore[type-arg]
            super().__init__(tarflow.TarFlowConfig(**model))

    assert push(run) == 0
    own = tarflow.TarFlow.from_pretrained(run).state_dict()
    for source in (str(run), NAME):
        theirs = Flow.from_pretrained(source)
        assert theirs.state_dict().keys() == own.keys()
        assert all(torch.equal(theirs.state_dict()[key], own[key]) for key in own)
    theirs.push_to_hub("alice/mixed")
    assert hub.repos["alice/mixed"].files("main") is not None
    back = tarflow.TarFlow.from_pretrained("alice/mixed")
    assert back.config == theirs.config and all(torch.equal(back.state_dict()[key], own[key]) for key in own)
    theirs.save_pretrained("mixed")
    assert tarflow.TarFlow.from_pretrained("mixed").config == theirs.config


def test_a_card_of_the_hub_is_our_own_form(run: Path, hub: Hub, logged_in: None) -> None:
    assert push(run) == 0
    text = hub.repos[NAME].files("main")[1]["README.md"].decode()  # type: ignore[index]
    Path("README.md").write_text(text)
    facts = read_card(Path("README.md"))
    assert facts["license"] == "mit" and facts["library_name"] == "tarflow"
    assert card_text(facts, text.split("---\n", 2)[2]) == text
    from huggingface_hub import ModelCard

    assert ModelCard(text).data.to_dict()["license"] == "mit"
    assert json.loads((pretrained.ROOT / "digits" / "config.json").read_text())  # untouched
