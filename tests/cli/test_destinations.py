"""A command that fills a directory leaves what is there alone: it refuses, or replaces what is its own and says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from flow_cases import build
from report_cases import make_run
from tarflow import run_data
from tarflow.cli import main
from tarflow.interop import to_official
from tarflow.storage import check_vacant

pytestmark = pytest.mark.usefixtures("quick_network")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", classes=False, noise="gaussian")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_samples_of_two_runs_do_not_mix(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn"
    assert main(["sample", str(trained), "-n", "12", "--out", str(out)]) == 0
    before = contents(out)
    assert len(before) == 12
    assert main(["sample", str(trained), "-n", "3", "--seed", "5", "--out", str(out)]) == 2
    assert f"--out {out}: holds 12 entries already, such as 00.png" in capsys.readouterr().err
    assert contents(out) == before


def test_a_name_with_a_number_after_its_dot_is_a_directory(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "there.png").mkdir()
    (tmp_path / "there.png" / ".DS_Store").touch()
    for name in ("sigma-0.1", "there.png"):
        assert main(["sample", str(trained), "-n", "2", "--out", str(tmp_path / name)]) == 0
        assert sorted(p.name for p in (tmp_path / name).glob("[0-9]*")) == ["0.png", "1.png"]


OTHERS = {
    "denoise": "denoise {run} digits --limit 2 --out {out}",
    "convert": "convert {root}/model_4_64_1_1_0.10.pth {out}",
    "demo": "demo --out {out}",
    "sweep": "sweep {run} -n 12 --extractor classifier --guidance 0 --out {out}",
    "score": "score {run} digits --out {root}/s.csv --maps {out}",
    "sample": "sample {run} -n 2 --out {out}",
    "prepare": "prepare digits --out {out}",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_directory_of_other_files_is_refused_at_once(
    name: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise AssertionError("work was done first")

    monkeypatch.setattr("tarflow.data.load.load_all", fail)
    monkeypatch.setattr(run_data, "open_known", fail)
    monkeypatch.setattr("tarflow.data.load.load", fail)
    monkeypatch.setattr("tarflow.model.flow.TarFlow.encode", fail)
    torch.save(
        to_official(build("conditional", torch.float32, width=64, head_dim=64)), tmp_path / "model_4_64_1_1_0.10.pth"
    )
    out = tmp_path / "out"
    out.mkdir()
    (out / "samples.png").write_text("mine")
    assert main(OTHERS[name].format(run=trained, root=tmp_path, out=out).split()) == 2
    assert str(out) in capsys.readouterr().err.splitlines()[-1]
    assert contents(out) == {"samples.png": b"mine"}


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl", "samples"])
def test_a_run_does_not_begin_over_what_it_would_replace(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "samples").mkdir() if name == "samples" else (tmp_path / name).write_text("mine")
    assert main(["train", "--recipe", "digits", "--out", str(tmp_path)]) == 2
    assert f"{tmp_path}: holds {name}" in capsys.readouterr().err


def test_force_replaces_what_was_prepared_and_nothing_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "prepared"
    assert main(["prepare", "digits", "--out", str(out)]) == 0
    assert main(["prepare", "digits", "--out", str(out), "--force"]) == 0
    (out / "notes.txt").write_text("mine")
    assert main(["prepare", "digits", "--out", str(out), "--force"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"


def test_a_sweep_says_what_it_replaces(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, tmp_path / "run")
    sweep = ["sweep", str(tmp_path / "run"), "--extractor", "classifier", "--temperature", "0.5", "--guidance"]
    for options, said in (
        (["0", "0.1", "-n", "12"], None),
        (["0", "0.1", "0.2", "-n", "12"], None),
        (["0", "0.2", "-n", "12"], "1 of 3 settings measured before, which are not in this grid"),
        (["0", "0.2", "-n", "13"], "2 settings measured with other samples"),
    ):
        assert main([*sweep, *options]) == 0
        line = [line for line in capsys.readouterr().err.splitlines() if "replaced" in line]
        assert line == ([] if said is None else [f"{tmp_path}/run/sweep/sweep.json: replaced: {said}"])
    assert len(json.loads((tmp_path / "run" / "sweep" / "sweep.json").read_text())["rows"]) == 2


def test_a_report_replaces_a_report_and_nothing_else(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = ["report", "--images", "2", "--limit", "8", "--out", str(out)]
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    assert main([*report, str(trained), str(other)]) == 0
    assert "replaced" not in capsys.readouterr().err
    assert (out / "report-pictures" / "other-samples.png").is_file()
    assert main([*report, str(trained)]) == 0
    assert f"{out}/report.html: replaced" in capsys.readouterr().err
    names = [p.name for p in (out / "report-pictures").iterdir()]
    assert "samples.png" in names and not [name for name in names if name.startswith("other")]
    (out / "report-pictures" / "notes.txt").write_text("mine")
    assert main([*report, str(trained)]) == 2
    assert "notes.txt" in capsys.readouterr().err
    shutil.rmtree(out)
    out.mkdir()
    (out / "report.html").write_text("<title>of another program</title>")
    assert main([*report, str(trained)]) == 2
    assert "not written by `tarflow report`" in capsys.readouterr().err
    assert contents(out) == {"report.html": b"<title>of another program</title>"}


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(FileExistsError, match="a file; expected a new or an empty directory"):
        check_vacant(tmp_path / "a.png")
    check_vacant(tmp_path / "missing")
    check_vacant(tmp_path, ours=["a.png"])
    with pytest.raises(FileExistsError, match="holds 1 entry already, such as a.png"):
        check_vacant(tmp_path)
