"""A model of the hub wherever a RUN stands: found, fetched whole, kept, and what goes wrong in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import tarflow
from flow_cases import build
from hub_server import Hub, Repo, sha256
from tarflow import pretrained
from tarflow.cli import main
from tarflow.evaluation.likelihood.held_out import held_out_scores, run_scoring
from tarflow.hub import FILES, name_of
from tarflow.kept import place_to_keep

pytestmark = pytest.mark.extra
NAME = "alice/flowers"
FEW_STEPS = "--steps 1 --evaluate-every 1 --evaluate-images 4 --sample-every 0 --batch-size 8"


def put(hub: Hub, name: str = NAME, **files: bytes) -> Repo:
    """A repository with the digits model that comes with the package, and other files, one of them a pickle."""
    repo = hub.repos.setdefault(name, Repo())
    own = {file.name: file.read_bytes() for file in (pretrained.ROOT / "digits").iterdir() if file.is_file()}
    repo.commit("main", own | {"state.pt": b"pickle", "model.bin": b"pickle", "notes.txt": b"much"} | files)
    return repo


def error_of(capsys: pytest.CaptureFixture[str], name: str = NAME) -> str:
    """The one line that `tarflow sample` ends with."""
    capsys.readouterr()
    assert main(["sample", name, "-n", "2", "--out", "out.png"]) == 2
    assert not Path("out.png").exists()
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "Traceback" in line] == []
    return lines[-1].removeprefix("tarflow: error: ")


# --- which arguments are of the hub ----------------------------------------------------------------------------------


def test_nothing_is_asked_for_what_may_be_a_path(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    put(hub)
    build("conditional", torch.float32).save_pretrained("bob/digits")
    assert tarflow.TarFlow.from_pretrained("bob/digits").config == build("conditional").config
    assert tarflow.open_run("digits").path == pretrained.ROOT / "digits"
    for run in ("bob/other", "./alice/flowers", "digitz"):
        assert f"{run}: no such directory" in error_of(capsys, run)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        tarflow.open_run(Path(NAME))
    assert hub.asked == []


# --- fetching --------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_a_run_like_any_other(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    put(hub)
    flow, own = tarflow.TarFlow.from_pretrained(NAME), tarflow.open_run("digits")
    for key, tensor in own.flow.state_dict().items():
        assert torch.equal(flow.state_dict()[key], tensor)
    run = tarflow.open_run(f"hub:{NAME}")
    assert run.setting == own.setting and name_of(run.path) == NAME
    weights = f"/cdn/{sha256((run.path / 'model.safetensors').read_bytes())}"
    assert sorted(hub.fetched()) == [weights, "config.json", "sampling.json"]  # each of them once
    assert torch.equal(run.sample("3", n=2, seed=5), own.sample("3", n=2, seed=5))
    for name, out in ((NAME, "a.png"), ("digits", "b.png")):
        assert main(["sample", name, "-n", "4", "--out", out]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_what_is_found_out_of_it_goes_to_the_cache_directory(hub: Hub, tmp_path: Path) -> None:
    put(hub)
    run = tarflow.open_run(NAME)
    before = {file: os.readlink(file) for file in run.path.iterdir()}
    run.write_samples("sheet.png", n=2)
    held_out_scores(run, run_scoring(run, -1, draws=1))
    assert len(list((tmp_path / "cache" / "held-out-scores").iterdir())) == 1
    assert {file: os.readlink(file) for file in run.path.iterdir()} == before
    place = place_to_keep(run)
    assert place.parent == tmp_path / "cache" / "models" and place.name.startswith("alice--flowers-")
    assert (place / "solvers.json").exists()
    assert main(["report", NAME]) == 2 and not (run.path / "report").exists() and not Path(NAME).exists()


def test_revisions(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    repo = put(hub)
    first = repo.branches["main"]
    likelihood = pretrained.ROOT / "digits-likelihood"
    repo.branches["other"] = first
    repo.commit("other", {name: (likelihood / name).read_bytes() for name in FILES[:2]})
    other = tarflow.open_run(f"{NAME}@other")
    assert other.flow.config == tarflow.open_run("digits-likelihood").flow.config
    assert tarflow.open_run(f"{NAME}@{first}").flow.config == tarflow.open_run("digits").flow.config
    assert error_of(capsys, f"{NAME}@v9").startswith(f"{NAME}@v9: no revision v9 of {NAME} on {hub.url}")


def test_a_model_to_start_from(hub: Hub) -> None:
    put(hub)
    assert main(["train", "--data", "digits", "--init", NAME, "--out", "tuned", *FEW_STEPS.split()]) == 0
    training = tarflow.open_run("tuned").config.training
    assert training is not None and training.init_from.startswith(f"{NAME} (")


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_an_interrupted_download_goes_on_where_it_was(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    put(hub)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # as if the weights were as large as usual
    hub.cut = [(3 << 16) + 100, 5]
    assert tarflow.open_run(NAME).flow.config == tarflow.open_run("digits").flow.config
    assert hub.ranges == [f"bytes={3 << 16}-", f"bytes={3 << 16}-"]


def test_a_download_that_breaks_off_leaves_nothing_half_and_goes_on_later(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut = [0] * 20  # the library tries six times
    message = error_of(capsys)
    assert message.startswith(f"{NAME}: no such directory, and not fetched from {hub.url} (") and message.endswith(
        "kept, try again"
    )
    hub.cut, hub.asked = [], []
    tarflow.open_run(NAME)
    assert "config.json" not in hub.fetched()  # which came whole the first time


def test_a_damaged_download_is_found_and_not_kept(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    put(hub)
    hub.spoil = True
    assert error_of(capsys) == (
        f"{NAME}: model.safetensors came damaged, its SHA-256 is not that of the hub; it is removed, try again"
    )
    hub.spoil = False
    tarflow.open_run(NAME)


def test_weights_that_were_damaged_before_they_were_uploaded(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    weights = bytearray((pretrained.ROOT / "digits" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    put(hub, **{"model.safetensors": bytes(weights)})
    assert error_of(capsys).endswith("model.safetensors: damaged, its digest is not that of what was written")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_is_out_of_order(
    status: int, hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(hub)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.fail = lambda method, path: status
    assert error_of(capsys) == f"{NAME}: {hub.url} answered {status}; try again later"
    hub.fail = lambda method, path: status if path.startswith("/cdn/") else None
    assert error_of(capsys) == f"{NAME}: {hub.url} answered {status}; try again later"
    hub.fail = lambda method, path: None
    tarflow.open_run(NAME)
    hub.fail = lambda method, path: status
    tarflow.open_run(NAME)  # what is here is here


def test_a_model_that_is_not_there_or_private(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"{NAME}: no such directory, and no such model on {hub.url}, or a private one: for that, `hf auth login`"
    assert error_of(capsys).startswith(said)
    put(hub).private = True
    assert error_of(capsys).startswith(said)
    hub.fail = lambda method, path: 404
    assert error_of(capsys).startswith(said)
    hub.fail = lambda method, path: None
    from hub_server import TOKEN

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    tarflow.open_run(NAME)


def test_a_foreign_model_is_not_downloaded(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    for config in (b'{"hidden_size": 4096}', b"[]", b"{", b"[" * 10000):
        hub.repos.clear()
        put(hub, **{"config.json": config})
        assert error_of(capsys).startswith(f"{NAME}: no model of tarflow on {hub.url}, its config.json has no section")
    hub.repos[NAME] = Repo()
    hub.repos[NAME].commit("main", {"pytorch_model.bin": b"pickle"})
    assert error_of(capsys).startswith(f"{NAME}: no model of tarflow")
    assert set(hub.fetched()) == {"config.json"}
    hub.repos[NAME].commit("main", {"config.json": (pretrained.ROOT / "digits" / "config.json").read_bytes()})
    assert error_of(capsys) == f"{NAME}: has no model.safetensors on {hub.url}"


def test_offline_with_a_cold_and_a_warm_cache(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    put(hub)

    def offline(value: bool) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", value)

    offline(True)
    said = f"{NAME}: no such directory, and not, or not all of it, in {constants.HF_HUB_CACHE}; HF_HUB_OFFLINE"
    assert error_of(capsys).startswith(said) and hub.asked == []
    offline(False)
    hub.fail = lambda method, path: 500 if path.startswith("/cdn/") else None
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    error_of(capsys)  # the config came, the weights did not
    offline(True)
    assert error_of(capsys).startswith(said)
    offline(False)
    hub.fail = lambda method, path: None
    tarflow.open_run(NAME)
    offline(True)
    hub.asked = []
    assert tarflow.open_run(NAME).flow.config.num_classes == 10 and hub.asked == []


def test_a_hub_that_is_not_reached(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import close_session

    put(hub)
    tarflow.open_run(NAME)
    hub.close()
    close_session()
    tarflow.open_run(NAME)  # from the cache
    assert error_of(capsys, "alice/other").startswith(
        f"alice/other: no such directory, and not fetched from {hub.url} (ConnectError"
    )


def test_a_cache_that_cannot_be_written_to(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(hub)
    (tmp_path / "hub-cache").write_text("a file")
    assert str(tmp_path / "hub-cache") in error_of(capsys)
