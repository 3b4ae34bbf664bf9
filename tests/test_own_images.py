"""A run knows its images by their digests and names: what was trained on is never called held out."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from small_runs import evaluate, resume, train, write_images
from tarflow import checkpoint
from tarflow.checkpoint import SPLIT_FILE, read_names
from tarflow.cli import main
from tarflow.data.errors import DataWarning
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare
from tarflow.run_data import open_given, open_held_out, open_splits

pytestmark = pytest.mark.filterwarnings("ignore:.*images are decoded once")  # which a store says
STORAGES = ("memory", "store")


@pytest.fixture(params=STORAGES)
def trained(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on 40 images in `photos`, 12 of them held out; with a first checkpoint at half of its steps."""
    write_images(tmp_path / "photos", 40)
    options = ("--held-out-fraction", "0.3", "--noise", "uniform")
    if request.param == "store":
        monkeypatch.setattr("tarflow.data.load.MEMORY_SHARE", 0.0)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    assert train(tmp_path / "photos", tmp_path / "run", *options) == 0
    return tmp_path / "run"


def png(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)).save(path, compress_level=0)


def joined(photos: Path) -> None:
    png(photos / "zzz.png", 777)


def joined_first(photos: Path) -> None:
    png(photos / "000-new.png", 777)


def joined_by_one_that_cannot_be_read(photos: Path) -> None:
    (photos / "bad.png").write_bytes(b"no image")


def joined_by_another_size(photos: Path) -> None:
    Image.new("L", (5, 4)).save(photos / "odd.png")


@pytest.mark.parametrize(
    "change",
    [
        joined_first,
        joined_by_another_size,
        *(pytest.param(change, marks=pytest.mark.slow) for change in (joined, joined_by_one_that_cannot_be_read)),
    ],
)
def test_images_that_join_are_left_out_by_every_command(
    change: Callable[[Path], None], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = trained.parent / "photos"
    before = open_splits(checkpoint.open_run(trained))
    values = evaluate(capsys, trained)
    change(photos)
    with pytest.warns(DataWarning, match="1 of 41 images are not those that .*run was trained on, and are left out"):
        after = open_splits(checkpoint.open_run(trained))
    assert list(after.held_out.names) == list(before.held_out.names) and len(before.held_out) == 12
    assert list(after.train.names) == list(before.train.names)
    with pytest.warns(DataWarning, match="1 of 41"):
        assert open_held_out(checkpoint.open_run(trained)).digest() == before.held_out.digest()
    assert evaluate(capsys, trained) == values
    assert "1 of 41 images" in _stderr(capsys, ["evaluate", str(trained), "--draws", "1"])
    shutil.rmtree(trained / "checkpoints" / "step-4")
    assert resume(trained) == 0, "its images are there, in the order of before"
    assert "1 of 41 images" in capsys.readouterr().err


@pytest.mark.parametrize("joins", [False, True])
def test_a_copy_whose_names_spell_accents_otherwise_is_known(joins: bool, tmp_path: Path) -> None:
    photos, copy = write_images(tmp_path / "photos", 40), tmp_path / "copy"
    copy.mkdir()
    for k, path in enumerate(sorted(photos.iterdir())):
        name = f"{'é' if k % 2 else 'f'}{path.name}"  # composed, é comes after f; decomposed, before it
        shutil.copyfile(path, copy / unicodedata.normalize("NFD", name))
        path.rename(photos / unicodedata.normalize("NFC", name))
    assert train(photos, tmp_path / "run", "--held-out-fraction", "0.3", "--noise", "uniform") == 0
    run = checkpoint.open_run(tmp_path / "run")
    if joins:
        joined(copy)
        with pytest.warns(DataWarning, match="1 of 41 images"):
            found, own = open_given(run, str(copy))
    else:
        found, own = open_given(run, str(copy))
    assert own and found.held_out.digest() == open_splits(run).held_out.digest() and len(found.held_out) == 12


def _stderr(capsys: pytest.CaptureFixture[str], command: list[str], code: int = 0) -> str:
    capsys.readouterr()
    assert main(command) == code
    return "".join(line for line in capsys.readouterr().err.splitlines(True) if "images are decoded once" not in line)


def gone(photos: Path) -> str:
    (photos / "007.png").unlink()
    return "1 of 40 are missing, the first is 007.png"


def renamed(photos: Path) -> str:
    (photos / "007.png").rename(photos / "seven.png")
    return "1 of 40 are missing, the first is 007.png"


def replaced(photos: Path) -> str:
    """All of them, by others of the same names and sizes."""
    sizes = {path.name: path.stat().st_size for path in photos.iterdir()}
    files = sorted(photos.iterdir())
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    assert {path.name: path.stat().st_size for path in photos.iterdir()} == sizes
    return "their pixels, labels or split have changed"


@pytest.mark.parametrize("change", [gone, pytest.param(renamed, marks=pytest.mark.slow), replaced])
def test_other_images_in_the_place_of_the_runs_are_refused_by_every_command(
    change: Callable[[Path], str], trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = trained.parent / "photos"
    problem = change(photos)
    for command in (
        ["evaluate", str(trained)],
        ["evaluate", str(trained), "--data", str(photos)],
        ["evaluate", str(trained / "checkpoints" / "step-4")],
        ["train", "--out", str(trained), "--resume"],
        ["quality", str(trained), "--extractor", "classifier", "-n", "20"],
        ["sweep", str(trained), "--extractor", "classifier", "-n", "20"],
    ):
        said = _stderr(capsys, command, 2)
        assert len(said.splitlines()) == 1 and problem in said and "photos" in said, said
    assert problem in _stderr(capsys, ["score", str(trained), str(photos), "--out", f"{photos}.csv"])
    assert main(["report", str(trained), "--images", "2", "--limit", "4"]) == 0
    assert problem in (trained / "report" / "report.html").read_text()


def test_a_relative_path_finds_the_same_images_from_everywhere_and_others_are_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "here" / "photos", 40)
    write_images(tmp_path / "there" / "photos", 40, seed=1000)
    monkeypatch.chdir(tmp_path / "here")
    assert train("photos", tmp_path / "run") == 0
    config = checkpoint.read_config(tmp_path / "run")
    assert config.data is not None and config.data.source == "photos"
    values = evaluate(capsys, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "there")
    assert evaluate(capsys, tmp_path / "run") == values
    assert evaluate(capsys, tmp_path / "run", "--data", "photos")["split"] == "all", "other images are not held out"
    (tmp_path / "here" / "photos").rename(tmp_path / "moved")
    assert "not the images that" in _stderr(capsys, ["evaluate", str(tmp_path / "run")], 2)
    moved = evaluate(capsys, tmp_path / "run", "--data", str(tmp_path / "moved"))
    assert moved == values | {"data": str(tmp_path / "moved")}, "they are known by what they are"
    assert resume(tmp_path / "run", "--data", str(tmp_path / "moved")) == 0
    assert evaluate(capsys, tmp_path / "run")["split"] == "held-out", "and where they are now is kept"


def test_moved_images_are_asked_for_by_every_command_and_taken_from_their_new_place(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = write_images(trained.parent / "new", 6, seed=500).parent / "moved"
    (trained.parent / "photos").rename(moved)
    asks = "where the data have moved, name their new place by --data"
    judged = [str(trained), "--extractor", "classifier", "-n", "20"]
    for command, then in (
        (["evaluate", str(trained)], 0),
        (["quality", *judged], 2),  # which has no classes to judge by
        (["sweep", *judged], 2),
        (["train", "--out", str(trained), "--resume"], 0),
    ):
        said = _stderr(capsys, command, 2)
        assert "photos" in said and asks in said
        said = _stderr(capsys, [*command, "--data", str(moved)], then)
        assert asks not in said and (then == 0 or "labelled training images" in said), "it has found them"


def test_score_and_report_take_images_that_have_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, new = write_images(tmp_path / "photos", 40), write_images(tmp_path / "new", 6, seed=500)
    assert train(photos, tmp_path / "run") == 0
    photos.rename(tmp_path / "moved")
    score = ["score", str(tmp_path / "run"), str(new), "--draws", "1", "--out", str(tmp_path / "s.csv")]
    assert "no percentiles" in (said := _stderr(capsys, score)) and "name their new place by --data" in said
    assert "no percentiles" not in _stderr(capsys, [*score, "--data", str(tmp_path / "moved")])
    report = ["report", str(tmp_path / "run"), "--images", "2", "--limit", "4"]
    for more, asks in ((["--data", str(tmp_path / "moved")], False), ([], True)):
        assert main([*report, *more]) == 0
        page = (tmp_path / "run" / "report" / "report.html").read_text()
        assert ("name their new place by --data" in page) == asks


def test_a_prepared_copy_is_the_runs_own_only_with_its_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_images(tmp_path / "photos", 40)
    assert train(photos, tmp_path / "run", "--held-out-fraction", "0.3") == 0
    for seed in (0, 1):
        prepare(str(photos), tmp_path / f"prepared{seed}", LoadOptions(), held_out_fraction=0.3, split_seed=seed)
    run = checkpoint.open_run(tmp_path / "run")
    assert open_given(run, str(tmp_path / "prepared0"))[1]
    assert not open_given(run, str(tmp_path / "prepared1"))[1]


def test_a_directory_with_config_and_weights_alone_still_knows_its_images(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = read_names(trained)
    assert names is not None and len(names) == 40
    (trained / SPLIT_FILE).write_bytes(b"garbage")
    assert read_names(trained) is None
    (trained / SPLIT_FILE).unlink()
    assert evaluate(capsys, trained)["split"] == "held-out"
    joined(trained.parent / "photos")
    assert "not the images that" in _stderr(capsys, ["evaluate", str(trained)], 2)


def percentiles(run: Path, images: Path) -> list[float]:
    assert main(["score", str(run), str(images), "--out", f"{images}.csv", "--draws", "1"]) == 0
    with open(f"{images}.csv", newline="") as file:
        return [float(row["percentile"]) for row in csv.DictReader(file) if row["percentile"]]


def test_percentiles_of_images_that_have_changed_are_not_those_of_the_old_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, new = write_images(tmp_path / "photos", 40), write_images(tmp_path / "new", 6, seed=500)
    assert train(photos, tmp_path / "run") == 0
    first = percentiles(tmp_path / "run", new)
    assert len(first) == 6
    kept = (tmp_path / "run" / "held_out_scores.json").read_text()
    joined(photos)
    assert percentiles(tmp_path / "run", new) == first
    replaced(photos)
    assert percentiles(tmp_path / "run", new) == [], "nor of any others"
    assert "no percentiles" in capsys.readouterr().err
    shutil.rmtree(photos)
    assert percentiles(tmp_path / "run", new) == first, "data that are gone say nothing against what was kept"
    assert json.loads(kept)["scored"] == _scores(tmp_path / "run")


def test_percentiles_of_a_run_that_knows_no_digests_are_those_of_the_images_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, new = write_images(tmp_path / "photos", 40), write_images(tmp_path / "new", 6, seed=500)
    assert train(photos, tmp_path / "run") == 0
    config: dict[str, Any] = json.loads((tmp_path / "run" / "config.json").read_text())
    config["data"] |= {"train_digest": "", "held_out_digest": ""}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    percentiles(tmp_path / "run", new)
    before = _scores(tmp_path / "run")
    write_images(photos, 40, seed=900)
    assert len(percentiles(tmp_path / "run", new)) == 6 and _scores(tmp_path / "run") != before


def _scores(run: Path) -> Any:
    return json.loads((run / "held_out_scores.json").read_text())["scored"]
