"""The folder that `tarflow push` makes: its card says what was measured, and nothing tells of the machine."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tarflow
from small_runs import train, write_images
from tarflow import kept, pretrained
from tarflow.checkpoint import read_config, read_metrics, weights_digest, write_config
from tarflow.cli import main
from tarflow.evaluation.quality.judge import Figure, keep_quality
from tarflow.pretrained import CARD_FILE, read_card
from tarflow.sampling.setting import Setting, StoredSetting
from tarflow.sharing.card import held_out_score

NAME = "alice/flowers"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("secret-client")
    assert train(write_images(place / "secret-photos", 40), place / "run", "--noise-std", "0.25") == 0
    return place / "run"


def folder(run: Path | str, out: Path, *words: str) -> dict[str, Any]:
    """What `tarflow push --dry-run` writes; the facts of its card, and its text as `text`, in one line."""
    words = words or ("--licence", "mit")
    assert main(["push", str(run), NAME, "--dry-run", str(out), "--samples", "4", *words]) == 0
    return read_card(out / CARD_FILE) | {"text": " ".join((out / CARD_FILE).read_text().split())}


def test_the_folder_is_a_run_that_tells_nothing_of_the_machine(run: Path, tmp_path: Path) -> None:
    folder(run, tmp_path / "out")
    files = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert set(files) == {"README.md", "config.json", "model.safetensors", "samples.png"}
    for name, content in files.items():
        assert b"secret-client" not in content, name
    assert read_config(tmp_path / "out").data.source == "secret-photos"  # type: ignore[union-attr]
    shared, own = tarflow.open_run(tmp_path / "out"), tarflow.open_run(run)
    assert weights_digest(shared.path) == weights_digest(own.path) and shared.config.model == own.config.model
    assert sorted(file.name for file in run.iterdir() if file.name == CARD_FILE) == []


@pytest.mark.parametrize("source", ["../../secret-client/photos", "~/secret-client/photos", "secret-client/photos/"])
def test_of_a_path_to_the_data_the_last_part_stays(source: str, run: Path, tmp_path: Path) -> None:
    config = read_config(run)
    assert config.data is not None
    copy = tmp_path / "copy"
    tarflow.open_run(run).flow.save_pretrained(copy)
    write_config(copy, dataclasses.replace(config, data=dataclasses.replace(config.data, source=source, place="")))
    card = folder(copy, tmp_path / "out")
    assert card["data"]["title"] == "photos"
    assert not any(b"secret-client" in file.read_bytes() for file in (tmp_path / "out").iterdir())
    for name in ("digits", "hub:owner/set:small@main"):  # no paths
        write_config(copy, dataclasses.replace(config, data=dataclasses.replace(config.data, source=name, place="")))
        card = folder(copy, tmp_path / f"out-{name[:3]}")
        assert read_config(tmp_path / f"out-{name[:3]}").data.source == name  # type: ignore[union-attr]
    assert card["datasets"] == ["owner/set"]


def test_the_card_says_what_it_was_told(run: Path, tmp_path: Path) -> None:
    card = folder(run, tmp_path / "out", "--licence", "CC-BY-4.0", "--data", "Forty squares\nof noise")
    assert card["license"] == "cc-by-4.0" and "cc-by-4.0, of the weights" in card["text"]
    assert card["data"] == {"title": "Forty squares of noise", "training_images": 36, "held_out_images": 4}
    for words in ("Forty squares of noise. 36 images were trained on, 4 held out.", f'open_run("{NAME}")', "# flowers"):
        assert words in card["text"]
    assert (
        "Gaussian noise, σ = 0.25" in card["text"]
        and "4 samples, not chosen: seed 0, no guidance, denoised with σ=0.25" in card["text"]
    )


def test_figures_are_those_of_these_weights_with_their_measure(run: Path, tmp_path: Path) -> None:
    card = folder(run, tmp_path / "plain")
    line = next(entry for entry in read_metrics(run) if "held_out_noisy_bits_per_dim" in entry)
    score = {"figure": "noisy_bits_per_dim", "value": line["held_out_noisy_bits_per_dim"], "step": 4}
    assert card["held_out"] == score | {"standard_error": line["standard_error"]} and "samples" not in card
    said = f"| bits/dim of noisy images, held out | {score['value']:.3f} ± {line['standard_error']:.3f} |"
    assert said in card["text"] and "at most 8 held-out images in one draw of noise, at step 4" in card["text"]

    opened = tarflow.open_run(run)
    figures = {"FD-Classifier": Figure(12.5, 100, 3.25, 40, 14.5).to_dict(), "KD": Figure(2, 9, 1, 9, 2, 0.5).to_dict()}
    entry = {"extractor": {"name": "classifier"}, "setting": dataclasses.asdict(Setting()), "agreement": 0.5}
    keep_quality(opened, entry | {"figures": figures})
    stored = StoredSetting(weights_digest(run), Setting(denoise=0.1), "FD-Classifier", 12.5, 100, 3)
    kept.save_setting(opened, stored)
    card = folder(run, tmp_path / "measured")
    assert card["samples"]["classifier"]["figures"]["FD-Classifier"]["value"] == 12.5
    for words in (
        "| FD-Classifier | 12.5 |",
        "40 held-out images have 3.25, as many samples 14.5",
        "| KD | 2 ± 0.5 |",
        "| 50.0 % |",
    ):
        assert words in card["text"], words
    assert str(stored) in card["text"] and tarflow.open_run(tmp_path / "measured").setting.denoise == 0.1
    for file in ("quality.json", "sampling.json"):
        assert (tmp_path / "measured" / file).read_bytes() == (run / file).read_bytes()
        (run / file).unlink()


def test_a_step_has_its_own_score_and_a_model_alone_has_none(run: Path, tmp_path: Path) -> None:
    assert held_out_score(tarflow.open_run(run / "checkpoints" / "step-2")) is None  # nothing was scored there
    found = held_out_score(tarflow.open_run(run / "checkpoints" / "step-4"))
    assert found is not None and found == held_out_score(tarflow.open_run(run))
    tarflow.open_run(run).flow.save_pretrained(tmp_path / "alone")
    card = folder(tmp_path / "alone", tmp_path / "out")
    assert "held_out" not in card and "## Figures" not in card["text"] and "## Training" not in card["text"]
    assert card["data"] == {"title": "not stored with the model"}


def test_a_model_of_the_package_can_be_shared(tmp_path: Path) -> None:
    card = folder("digits", tmp_path / "out")
    assert card["parameters"] == read_card(pretrained.ROOT / "digits" / CARD_FILE)["parameters"]
    assert "10 classes: 0, 1, 2" in card["text"]
    assert (tmp_path / "out" / "sampling.json").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["data"]["source"] == "digits"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flowers", "--licence", "mit"], "hub:flowers: expected hub:OWNER/NAME"),
        ([NAME], "Missing from tarflow push: "),
        ([NAME, "--licence", "my own"], "licence: expected it as the hub names it"),
        ([NAME, "--licence", "mit", "--data", " "], "data: expected what the images are called"),
        ([NAME, "--licence", "mit", "--samples", "-1"], "samples: expected 0 or more, got -1"),
        ([f"{NAME}@a", "--licence", "mit", "--revision", "b"], f"--revision b: {NAME}@a names one already"),
    ],
)
def test_what_cannot_be_pushed(
    words: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run), *words, "--dry-run", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_not_replaced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["push", str(run), NAME, "--licence", "mit", "--dry-run", str(tmp_path)]) == 2
    assert f"--dry-run {tmp_path}: holds 1 entry already" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_pushing_without_the_library(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(run), NAME, "--licence", "mit"]) == 2
    said = f"{NAME}: to push needs huggingface_hub: pip install 'tarflow[hub]'"
    assert capsys.readouterr().err == f"tarflow: error: {said}\n"
