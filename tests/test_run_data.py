"""The images of a run are those that its training had: the same ones, in the same split, with bad records left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flow_cases import build
from tarflow.checkpoint import Run, write_config
from tarflow.cli import main
from tarflow.config import DataConfig, RunConfig, TrainingConfig
from tarflow.data import sources
from tarflow.data.errors import DataError
from tarflow.data.load import load
from tarflow.data.readers import hub
from tarflow.run_data import open_all, open_given, open_held_out, open_splits, stored_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images in two classes, larger than the model takes, and a file that is none."""
    for k in range(12):
        place = tmp_path / "photos" / ("cat" if k % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (9, 8), np.uint8)
        Image.fromarray(pixels).save(place / f"{k:02}.png")
    (tmp_path / "photos" / "cat" / "bad.png").write_bytes(b"no image")
    return tmp_path / "photos"


def run_of(source: Path, **fields: object) -> Run:
    """A run whose classes stand in another order than the folders."""
    flow = build("conditional", torch.float32)
    names = ("dog", "cat", "eel")[: flow.config.num_classes]
    data = DataConfig(source=str(source), class_names=names, levels=16, **fields)  # type: ignore[arg-type]
    return Run(Path("somewhere"), flow, RunConfig(flow.config, data))


def test_its_own_data_are_read_as_training_read_them(folder: Path) -> None:
    run = run_of(folder, held_out_fraction=0.4, split_seed=3, skip_bad=True)
    model, found = run.config.model, open_splits(run)
    expected = load(
        str(folder),
        image_size=model.image_shape,
        channels=model.channels,
        levels=16,
        class_names=("dog", "cat", "eel"),
        held_out_fraction=0.4,
        split_seed=3,
        skip_bad=True,
    )
    for ours, theirs in ((found.train, expected.train), (found.held_out, expected.held_out)):
        assert torch.equal(ours.images, theirs.images)
        assert ours.labels is not None and theirs.labels is not None and torch.equal(ours.labels, theirs.labels)
    assert len(found.held_out) == round(0.4 * 12) and found.train.class_names[0] == "dog"
    assert torch.equal(open_held_out(run).images, found.held_out.images)
    assert len(open_all(run, str(folder))) == 12


def test_of_other_data_bad_records_are_left_out_only_where_that_is_asked_for(folder: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "elsewhere", skip_bad=True)
    for opening in (open_given, open_all):
        with pytest.raises(DataError, match=r"cat/bad.png"):
            opening(run, str(folder))
    other, own = open_given(run, str(folder), skip_bad=True)
    assert len(other.skipped) == 1 and not own
    assert len(open_all(run, str(folder), skip_bad=True)) == 12


def test_a_model_alone_says_what_is_missing() -> None:
    run = Run(Path("bare"), build("conditional", torch.float32), RunConfig(build("conditional", torch.float32).config))
    for call in (stored_data, open_splits, open_held_out):
        with pytest.raises(ValueError, match="bare: only a model is stored; expected section `data`"):
            call(run)


def test_what_a_run_names_on_the_hub_is_asked_for_and_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run may be somebody else's; whoever types the name has asked for it."""
    asked: list[str] = []

    def fetched(source: str, *_: object) -> None:
        asked.append(source)
        raise DataError(f"{source}: fetched")

    monkeypatch.setattr(sources, "READERS", [sources.Reader(hub.claims, fetched), *sources.READERS])  # type: ignore[arg-type]
    run = run_of(Path("hub:owner/name"))
    for call in (open_splits, open_held_out):
        with pytest.raises(ValueError, match=r"somewhere: its config.json names hub:owner/name.*by --data hub:owner"):
            call(run)
    run.flow.save_pretrained(tmp_path / "run")
    write_config(tmp_path / "run", RunConfig(run.flow.config, run.config.data, TrainingConfig(steps=1)))
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    for command in (
        "evaluate {run}",
        "quality {run} -n 12 --extractor classifier",
        "sweep {run} -n 12 --extractor classifier",
    ):
        assert main(command.format(run=tmp_path / "run").split()) == 2
        assert "names hub:owner/name, to be downloaded" in capsys.readouterr().err
    assert main(["score", f"{tmp_path}/run", f"{tmp_path}/a.png", "--out", f"{tmp_path}/s.csv", "--draws", "1"]) == 0
    assert "no percentiles" in (said := capsys.readouterr().err) and "hub:owner/name" in said
    assert asked == []
    assert main(["evaluate", f"{tmp_path}/run", "--data", "hub:owner/name"]) == 2
    assert asked == ["hub:owner/name"]
