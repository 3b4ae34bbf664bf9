"""From a run to a model that comes along: the files, what they say, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import tarflow
from benchmarks import ship
from report_cases import make_run
from tarflow import checkpoint, kept, pretrained
from tarflow.checkpoint import weights_digest
from tarflow.config import RunConfig
from tarflow.evaluation.likelihood import held_out
from tarflow.evaluation.likelihood.held_out import run_scoring
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.quality.extractors import small_network
from tarflow.sampling.setting import Setting, StoredSetting
from tarflow.tensor_files import read_tensors

QUICK = ship.Model("noise", "It is " + "small, and " * 30 + "quick.", "-n 12 --extractor classifier", "--no-classify")
TRAINED_BY = ["tarflow train --recipe digits --out runs/digits", "tarflow sweep runs/digits"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tarflow.Run:
    """A run of the digits by their name, that says where they were, with a setting for these weights."""
    monkeypatch.setattr(small_network, "STEPS", 5)
    monkeypatch.setattr(held_out, "MAX_IMAGES", 30)
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ship.MODELS, "small", QUICK)
    path = make_run(tmp_path / "run", classes=True, noise="gaussian")
    made = tarflow.open_run(path)
    assert made.config.data is not None
    training = made.config.training
    assert training is not None
    config = RunConfig(
        made.config.model,
        dataclasses.replace(made.config.data, place="/home/someone/digits"),
        dataclasses.replace(training, init_from="/home/someone/runs/old (0123456789abcdef)"),
    )
    checkpoint.write_config(path, config)
    made = tarflow.open_run(path)
    kept.save_setting(made, StoredSetting(weights_digest(path), Setting(denoise=0.05), "FD-Classifier", 1.5, 12, 3))
    return made


def test_a_run_becomes_a_model_with_figures_of_its_own_files(
    run: tarflow.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "package"
    root.mkdir()
    chosen = held_out.chosen_images(run).images
    out = ship.ship(str(run.path), "small", TRAINED_BY, root=root)
    assert out == root / "small"
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "held_out_scores.json",
        "model.safetensors",
        "sampling.json",
    ]
    assert "someone" not in "".join(file.read_text() for file in out.iterdir() if file.suffix != ".safetensors")

    tensors, trained = read_tensors(out / "model.safetensors"), run.flow.state_dict()
    assert tensors.keys() == trained.keys()
    assert all(torch.equal(tensor, trained[name].bfloat16()) for name, tensor in tensors.items())
    monkeypatch.setattr(pretrained, "ROOT", root)
    shipped = tarflow.open_run("small")
    assert shipped.setting == Setting(denoise=0.05) == run.setting and shipped.config.model == run.config.model

    assert len(json.loads((out / "held_out_scores.json").read_text())["scored"]) == 12, "ten classes, none, any"
    with monkeypatch.context() as without:
        without.setattr(held_out, "open_held_out", None)
        for label in (None, -1, 9):
            scoring = run_scoring(shipped, label)
            found = class_scores(shipped.flow, chosen[:3], scoring=scoring).mean
            assert float((held_out.held_out_scores(shipped, scoring).log_prob[:3] - found).abs().max()) < 0.01

    facts = pretrained.facts("small")
    assert facts["trained_by"] == TRAINED_BY and facts["draws"] == "noise" and facts["image_shape"] == [1, 8, 8]
    assert facts["data"]["licence"] == "CC BY 4.0" and facts["data"]["training_images"] == len(run.images().train)
    for key, command in (
        ("held_out", "evaluate small --no-classify"),
        ("samples", "quality small -n 12 --extractor classifier"),
    ):
        assert facts[key]["command"] == f"tarflow {command}"
        capsys.readouterr()
        assert ship.tarflow(command.split()) == 0
        again = json.loads(capsys.readouterr().out)
        if key == "held_out":
            assert again["noisy_bits_per_dim"] == facts[key]["value"] and facts[key]["figure"] == "noisy_bits_per_dim"
        else:
            assert again["figures"] == facts[key]["figures"] and again["setting"] == facts[key]["setting"]
    text = (out / "README.md").read_text()
    assert f"{facts['held_out']['value']:.3f} ± " in text and "the best of 3 by FD-Classifier" in text
    assert "40 steps in 0.3 minutes" in text, "the last line of the metrics that has seconds"
    body = text.split("---", 2)[2].splitlines()
    assert all(len(line) <= 120 for line in body if not line.startswith("|"))


def test_weights_in_float32_are_those_of_the_run_and_an_older_model_is_replaced(
    run: tarflow.Run, tmp_path: Path
) -> None:
    root = tmp_path / "package"
    (root / "small").mkdir(parents=True)
    (root / "small" / "older").write_text("")
    (run.path / kept.SETTING_FILE).unlink()
    out = ship.ship(str(run.path), "small", TRAINED_BY, dtype="float32", root=root)
    assert sorted(file.name for file in out.iterdir()) == [
        *("README.md", "config.json", "held_out_scores.json", "model.safetensors")
    ]
    assert weights_digest(out) == weights_digest(run.path)


def test_a_setting_that_was_found_for_other_weights_stays_behind(run: tarflow.Run, tmp_path: Path) -> None:
    kept.save_setting(run, StoredSetting("others", Setting(denoise=0.05), "FD-Classifier", 1.5, 12, 3))
    (tmp_path / "out").mkdir()
    ship.write_model(run, tmp_path / "out", "digits", torch.float32)
    assert not (tmp_path / "out" / kept.SETTING_FILE).exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tiny", "", "NAME tiny: expected one of digits"),
        ("small", "photos", "--data photos: expected one of digits"),
        ("small", "", "small: expected at most 8000000 bytes of all models, got"),
    ],
)
def test_what_does_not_fit_is_refused(
    name: str, data: str, message: str, run: tarflow.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "package"
    (root / "other").mkdir(parents=True)
    (root / "other" / "model.safetensors").write_bytes(bytes(8_000_000))
    monkeypatch.setattr(ship, "write_card", lambda *_: None)
    with pytest.raises(ValueError, match=message):
        ship.ship(str(run.path), name, TRAINED_BY, data=data, root=root)
    assert [path.name for path in root.iterdir()] == ["other"]


def test_data_that_are_not_those_of_the_training_end_it(run: tarflow.Run, tmp_path: Path) -> None:
    """Its first command says so, and exits with its code."""
    assert run.config.data is not None
    data = dataclasses.replace(run.config.data, train_digest="a" * 32, held_out_digest="b" * 32)
    checkpoint.write_config(run.path, dataclasses.replace(run.config, data=data))
    with pytest.raises(SystemExit) as ended:
        ship.ship(str(run.path), "small", TRAINED_BY, root=tmp_path)
    assert ended.value.code == 2 and not (tmp_path / "small").exists()


def test_every_model_that_comes_along_has_an_entry() -> None:
    assert set(pretrained.names()) <= set(ship.MODELS)
    for name in pretrained.names():
        card = pretrained.read_card(pretrained.ROOT / name / "README.md")
        data = tarflow.open_run(name).config.data
        assert data is not None and card["draws"] == ship.MODELS[name].draws
        assert card["data"].items() >= dataclasses.asdict(ship.DATA[data.source]).items()
