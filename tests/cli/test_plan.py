"""`tarflow plan`: what a recipe leaves to the data, where it comes from, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tarflow import recipes
from tarflow.cli import main
from tarflow.config import TarFlowConfig
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare
from tarflow.planning import devices
from tarflow.planning.devices import Device
from tarflow.planning.work import parameters


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_can_be_planned_without_its_data(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, name, "--device", "h100", "--devices", "2")
    model = recipes.load(name)["model"]
    assert (found["model"]["width"], found["model"]["layers"]) == (model["width"], model["layers"])
    assert found["parameters"] == parameters(TarFlowConfig(**found["model"]))
    assert found["steps"] > 0 and found["hours"] > 0 and found["memory"]["peak"] > 0
    conditional = recipes.load(name)["data"].get("conditional", True) and "num_classes" in recipes.expects(name)
    assert (found["model"]["num_classes"] > 0) == conditional
    assert main(["plan", name, "--device", "h100", "--devices", "2"]) == 0
    assert f"{found['parameters']:,}" in capsys.readouterr().out


def test_a_published_cost_is_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the recipe's header: 8e20 FLOP, nine days on 8 A100 in bf16."""
    found = plan(capsys, "imagenet64", "--device", "a100", "--devices", "8")
    assert found["run_flops"] == pytest.approx(8e20, rel=0.05)
    assert found["hours"] / 24 == pytest.approx(9, rel=0.1)


def test_what_expects_says_is_what_the_data_are(capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded digits are at hand: `--data` reads them, and comes to the same."""
    for name in ("digits", "digits-likelihood"):
        expected = plan(capsys, name, "--device", "h100")
        assert expected == plan(capsys, name, "--device", "h100", "--data", "digits") | {"recipe": name}
        assert expected["images"] == 1438


def test_images_that_training_leaves_off_the_device_are_not_planned_on_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A prepared set above a size, as `data.feed` keeps it; a smaller one goes to the device."""
    prepare("digits", tmp_path / "prepared", LoadOptions(), held_out_fraction=0.2)
    options = ("digits", "--device", "h100", "--data", str(tmp_path / "prepared"))
    small = plan(capsys, *options)
    assert small["memory"]["images"] == 1438 * 64
    monkeypatch.setattr("tarflow.planning.plan.KEPT_SHARE", (1438 * 64 - 1) / 80e9)
    large = plan(capsys, *options)
    assert large["memory"]["images"] == 0 and large["images"] == small["images"]


def test_options_take_the_place_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    base = plan(capsys, "cifar10", "--device", "h100")
    assert base["steps"] == -(-200 * 50_000 // 256)
    assert plan(capsys, "cifar10", "--device", "h100", "--steps", "7")["steps"] == 7
    assert plan(capsys, "cifar10", "--device", "h100", "--epochs", "2")["steps"] == 391
    assert plan(capsys, "cifar10", "--device", "h100", "--images", "2560")["steps"] == 2000
    larger = plan(capsys, "cifar10", "--device", "h100", "--image-size", "64", "--num-classes", "3")
    assert larger["model"]["image_size"] == 64 and larger["model"]["num_classes"] == 3
    for option, value, field in (
        ("--batch-size", 64, "batch_size"),
        ("--accumulate", 4, "accumulate"),
        ("--checkpoint-activations", "layers", "checkpoint_activations"),
        ("--precision", "float32", "precision"),
    ):
        found = plan(capsys, "cifar10", "--device", "h100", option, str(value))
        assert found["training"][field] == value
        assert found["memory"]["activations"] != base["memory"]["activations"]
    shares = plan(capsys, "cifar10", "--device", "h100", "--devices", "4", "--strategy", "fsdp")
    assert shares["memory"]["moments"] == pytest.approx(base["memory"]["moments"] / 4, rel=1e-6)
    assert plan(capsys, "cifar10", "--device", "h100", "--share", "0.2")["hours"] == pytest.approx(
        2 * base["hours"], rel=0.1
    )


def test_where_it_does_not_fit_the_table_says_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "imagenet64-likelihood", "--device", "a100", "--devices", "8"]) == 0
    text = capsys.readouterr().out
    assert "It does not fit" in text and "--checkpoint-activations layers: " in text
    assert main(["plan", "cifar10", "--device", "h100"]) == 0
    assert "fit" not in capsys.readouterr().out


def test_this_machine_is_measured_and_said_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def measured(device: torch.device, *, seconds: float) -> Device:
        asked.append(device.type)
        return Device("cpu", "this machine's CPU", 1e9, 1e11, 1e10, 1e10, 0.0, 0.5, "measured now")

    monkeypatch.setattr(devices, "measured", measured)
    found = plan(capsys, "digits")
    assert asked == ["cpu"] and found["products"] == "float32"
    assert found["compute_seconds"] == pytest.approx(found["step_flops"] / 5e10)
    assert main(["plan", "digits", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "measured now" in text and "is expected" in text and "assumed" not in text


@pytest.mark.parametrize("options", [(), ("--share", "0.25"), ("--devices", "4"), ("--devices", "2", "--share", "0.5")])
@pytest.mark.parametrize("recompute", ["elementwise", "layers"])
def test_the_share_that_is_printed_is_the_one_that_time_is_divided_by(
    options: tuple[str, ...], recompute: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cifar10", "--device", "h100", "--checkpoint-activations", recompute, *options]
    assert main(["plan", *arguments]) == 0
    share = float(options[-1]) if "--share" in options else devices.ASSUMED_SHARE
    assert f", of which {share:.0%} is assumed" in " ".join(capsys.readouterr().out.split())
    found = plan(capsys, *arguments)
    rate = getattr(devices.KNOWN["h100"], found["products"])
    work = (found["step_flops"] + found["recomputed_flops"]) / found["devices"]
    assert found["compute_seconds"] == pytest.approx(work / (rate * share))


@pytest.mark.parametrize(("option", "other"), [("steps", "epochs"), ("epochs", "steps")])
def test_a_length_by_hand_replaces_that_of_the_recipe(
    option: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in recipes.names() if other in recipes.load(name)["training"]]
    assert names, f"some recipe has {other}"
    found = plan(capsys, names[0], "--device", "h100", f"--{option}", "3", "--images", "6400", "--batch-size", "64")
    assert found["training"][option] == 3 and found["training"][other] is None
    assert found["steps"] == {"steps": 3, "epochs": 300}[option]
