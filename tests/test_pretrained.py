"""The models that come with the package: found by name, small, whole, and what their cards say of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import tarflow
from flow_cases import build
from tarflow import digests, pretrained
from tarflow.checkpoint import open_run, read_config
from tarflow.evaluation.likelihood import held_out
from tarflow.evaluation.likelihood.anomalies import code_bits
from tarflow.evaluation.likelihood.held_out import HELD_OUT_FILE, held_out_scores, run_scoring
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.measure import Measure
from tarflow.pretrained import CARD_FILE, MOST_BYTES, ROOT, WEIGHTS_FILE, card_text, located, name_of, read_card

NAMES = pretrained.names()
every_model = pytest.mark.parametrize("name", NAMES)


# --- names -----------------------------------------------------------------------------------------------------------


@every_model
def test_a_name_is_a_model_wherever_a_path_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow = tarflow.TarFlow.from_pretrained(name)
    run = tarflow.open_run(name)
    assert run.path == ROOT / name == located(Path(name)) and run.flow.config == flow.config
    assert not flow.training and {tensor.dtype for tensor in flow.state_dict().values()} == {torch.float32}
    for key, tensor in flow.state_dict().items():
        assert torch.equal(run.flow.state_dict()[key], tensor)


def test_a_path_that_exists_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build("conditional", torch.float32).save_pretrained("digits")
    assert tarflow.TarFlow.from_pretrained("digits").config == build("conditional").config
    assert open_run("digits").path == Path("digits") and name_of(Path("digits")) is None


@pytest.mark.parametrize("name", ["digitz", "./digits", "nowhere/of/digits", "", "__pycache__"])
def test_what_is_neither_a_path_nor_a_name_is_an_error_that_names_those_known(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (tarflow.TarFlow.from_pretrained, tarflow.open_run):
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            use(name)
        if name:  # Path("") is the directory where one is
            assert str(caught.value).startswith(f"{name}: no such directory") and "digits, digits-like" in str(
                caught.value
            )
    with pytest.raises(FileNotFoundError, match="perhaps digits"):
        located("digitz")


def test_a_model_of_the_package_is_known_by_its_place_too() -> None:
    assert name_of(ROOT / "digits") == "digits" and name_of(ROOT / ".." / "pretrained" / "digits") == "digits"
    assert name_of(ROOT) is None and name_of(ROOT / "digits" / "sweep") is None


# --- cards -----------------------------------------------------------------------------------------------------------


@every_model
def test_a_card_is_of_the_weights_beside_it(name: str) -> None:
    card = read_card(ROOT / name / CARD_FILE)
    flow = tarflow.TarFlow.from_pretrained(name)
    assert card["parameters"] == sum(parameter.numel() for parameter in flow.parameters())
    assert card["weights"] == digests.file_facts(ROOT / name / WEIGHTS_FILE)
    text = (ROOT / name / CARD_FILE).read_text()
    with safe_open(ROOT / name / WEIGHTS_FILE, "pt") as file:
        (dtype,) = {file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 - it is no dictionary
    assert f"in {str(dtype).removeprefix('torch.')}, and float32" in " ".join(text.split())
    for shown in (*card["trained_by"], card["held_out"]["command"], card["data"]["source"], card["data"]["licence"]):
        assert shown in " ".join(text.split("---", 2)[2].split())
    assert f"{card['held_out']['value']:.3f} ± {card['held_out']['standard_error']:.3f}" in text


@every_model
def test_a_model_says_nothing_of_the_machine_that_made_it(name: str) -> None:
    config = read_config(ROOT / name)
    assert config.data is not None and config.training is not None
    assert config.data.place == "" and config.data.source in ("digits", "fashion-mnist")
    assert sorted(file.name for file in (ROOT / name).iterdir() if file.name != "sampling.json") == sorted(
        [CARD_FILE, "config.json", HELD_OUT_FILE, WEIGHTS_FILE]
    )


@every_model
def test_the_figure_of_a_card_is_measured_again_by_its_command(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of data that are at hand; all held-out images of the digits, and some of larger sets."""
    from tarflow.cli import main

    card = read_card(ROOT / name / CARD_FILE)["held_out"]
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    words = [*card["command"].replace(" --no-classify", "").split()[1:], "--float64", "0", "--no-classify"]
    if main(words if name.startswith("digits") else [*words, "--limit", "100"]) == 2:
        message = capsys.readouterr().err
        assert "fashion-mnist: " in message and "dataset-fashion-mnist" in message
        pytest.skip(message)
    found = json.loads(capsys.readouterr().out)
    if name.startswith("digits"):
        assert found["images"] == card["images"]
        assert found[card["figure"]] == pytest.approx(card["value"], abs=1e-4)
    assert abs(found[card["figure"]] - card["value"]) < 5 * found["standard_error"]


@every_model
def test_its_held_out_images_were_scored_under_every_label_policy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither are they scored again, nor read; other weights would be."""
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    run = open_run(name)
    with monkeypatch.context() as without:
        without.setattr(held_out, "open_held_out", None)
        for label in (None, *range(-1 if run.flow.conditions else 0, run.config.model.num_classes)):
            found = held_out_scores(run, run_scoring(run, label))
            assert len(found.log_prob) == min(read_card(ROOT / name / CARD_FILE)["held_out"]["images"], 2000)
            assert bool(found.log_prob.isfinite().all()) and not list(tmp_path.iterdir())
        without.setattr(held_out, "weights_digest", lambda _: "others")
        with pytest.raises(TypeError, match="NoneType"):
            held_out_scores(run, run_scoring(run))


@pytest.mark.parametrize("name", ["digits", "digits-likelihood"])
def test_shipped_scores_are_those_of_its_held_out_images(name: str) -> None:
    run, few = tarflow.open_run(name), slice(100, 120)
    images = run.images().held_out.images[few]
    for label in (None, -1, 3) if run.flow.conditions else (None,):
        scoring = run_scoring(run, label)
        known = held_out_scores(run, scoring)
        found = class_scores(run.flow, images, scoring=scoring, indices=range(100, 120)).mean
        assert float((known.log_prob[few] - found).abs().max()) < 0.01
        assert torch.equal(known.code_bits[few], code_bits(images))


def test_front_matter_comes_back_as_it_was_written(tmp_path: Path) -> None:
    facts = {"license": "mit", "data": {"title": "Ünïcode: of “some” # kind", "n": 3}, "tags": ["a", "b: c"], "x": 1.5}
    (tmp_path / CARD_FILE).write_text(card_text(facts, "\n# title\n\ntext\n---\nmore\n"))
    assert read_card(tmp_path / CARD_FILE) == facts
    for wrong in ("", "# no front matter\n", "---\nlicense: mit\n---\n", "---\nlicense\n---\n", "---\nlicense: 1\n"):
        (tmp_path / CARD_FILE).write_text(wrong)
        with pytest.raises(ValueError, match=f"{CARD_FILE}: expected lines"):
            read_card(tmp_path / CARD_FILE)


# --- size and dtype --------------------------------------------------------------------------------------------------


def test_all_of_them_together_are_small() -> None:
    files = [file for file in ROOT.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {file.parent.name for file in files if file.name == WEIGHTS_FILE} == set(NAMES)
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES


def test_likelihoods_are_computed_in_float32_whatever_the_file_holds() -> None:
    flows = [
        tarflow.TarFlow.from_pretrained("digits-likelihood", dtype=dtype).requires_grad_(False)
        for dtype in (torch.float64, None, torch.bfloat16)
    ]
    pixels = tarflow.open_run("digits").images().held_out.images[:50]
    x = Measure(17).noisy(pixels, torch.Generator().manual_seed(0))
    exact, wide, rounded = (flow.log_prob(x) for flow in flows)
    assert float((wide - exact).abs().max()) < 1e-2 < float((rounded - exact).abs().max())
