"""What the command line makes of its words: what was typed counts, what cannot work is refused before reading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import tarflow
from flow_cases import build
from tarflow import checkpoint
from tarflow.checkpoint import write_config
from tarflow.cli import COMMANDS, main
from tarflow.cli import train as train_command
from tarflow.cli.arguments import parse
from tarflow.config import DataConfig, RunConfig, TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--width", "64", "--layers", "1", "--patch-size", "8", "--batch-size", "4", "--steps", "1"]
TINY += ["--sample-every", "0", "--evaluate-images", "4"]


def overrides(*words: str) -> dict[str, Any]:
    argv = ["--out", "runs/a", *words]
    args = parse(train_command.options(argv), argv, "tarflow train")
    typed: dict[str, Any] = args.model | args.data | args.training
    return typed


def test_what_was_typed_is_an_override_also_where_the_recipe_says_the_same() -> None:
    recipe = tarflow.recipes.load("digits")
    steps = recipe["training"]["steps"]
    assert overrides("--recipe", "digits") == {}
    assert overrides("--recipe", "digits", "--steps", str(steps)) == {"steps": steps}
    assert overrides("--recipe=digits", "--data=digits", "--no-flip") == {"source": "digits", "flip": False}
    assert overrides("--noise_std", "0.05", "--layers", "2", "2") == {"noise_std": 0.05, "layers": (2, 2)}
    assert overrides("--recipe", "cifar10", "--recipe", "digits", "--steps", "7") == {"steps": 7}


def test_data_that_the_default_recipe_names_too_are_data(tmp_path: Path) -> None:
    assert main(["train", "--data", "digits", "--out", str(tmp_path / "run"), *TINY]) == 0
    config = checkpoint.read_config(tmp_path / "run")
    assert config.data is not None and config.data.source == "digits"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model whose data nobody reads."""
    root = tmp_path_factory.mktemp("place")
    flow = build("conditional", torch.float32)
    flow.save_pretrained(root / "run")
    names = tuple("abcdefgh"[: flow.config.num_classes])
    write_config(root / "run", RunConfig(flow.config, DataConfig(class_names=names), TrainingConfig(steps=1)))
    return root


IMPOSSIBLE = [
    "train --recipe digits --lr -1 --out {o}",
    "train --recipe digits --steps 5 --epochs 1 --out {o}",
    "train --data digits --patch-size 5 --image-size 64 --out {o}",
    "train --recipe digits --width 65 --out {o}",
    "train --recipe digits --accumulate 3 --out {o}",
    "train --recipe digits --precision tf32 --device cpu --out {o}",
    "train --recipe digits --held-out-fraction 2 --out {o}",
    "train --recipe digits --optimizer muon --strategy fsdp --out {o}",
    "train --data digits --init {p}/run --width 128 --out {o}",
    "train --resume --lr 1 --out {p}/run",
    "plan digits --data digits --batch-size 0",
    "evaluate {p}/run --draws 0",
    "evaluate {p}/run --limit 0",
    "evaluate {p}/run --batch-size 0",
    "denoise {p}/run digits --limit 0 --out {o}",
    "denoise {p}/run digits --batch-size 0 --out {o}",
    "denoise {p}/run digits --noise-std 0 --out {o}",
    "denoise {p}/run digits --class zebra --out {o}",
    "score {p}/run digits --draws 0 --out {o}.csv",
    "score {p}/run digits --class zebra --out {o}.csv",
    "prepare digits --channels 2 --out {o}",
    "prepare digits --held-out-fraction 2 --out {o}",
]


@pytest.mark.parametrize("command", IMPOSSIBLE)
def test_what_cannot_work_is_refused_before_anything_is_read(
    command: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*arguments: object, **named: object) -> None:
        raise AssertionError("the data are read")

    import tarflow.data.load as load
    import tarflow.data.store.write as prepare

    for module, name in ((load, "open_measured"), (prepare, "open_measured")):
        monkeypatch.setattr(module, name, read)
    assert main(command.format(p=place, o=tmp_path / "out").split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("tarflow: error: ") and "the data are read" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_negative_flag_says_what_it_does_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Made from a field that is true by default, `--no-it` stands beside the help of what it switches off."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = [line.strip("│| ") for line in capsys.readouterr().out.splitlines()]
    text = "\n".join(lines)
    for option in re.split(r"\n(?=--)", text):
        if option.startswith("--no-"):
            assert "(default: False)" in " ".join(option.split()), option


def test_what_resuming_promises_holds_on_a_gpu_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit is of a CPU: a GPU adds up in its own order (docs/reliability.md)."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "continue the run in --out, on a CPU bit for bit" in words
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CHANGELOG.md"):
        for sentence in re.split(r"(?<=[.;|])\s", page.read_text()):
            if re.search(r"resum|--resume", sentence) and "bit for bit" in sentence:
                assert "CPU" in sentence, f"{page.name}: {sentence}"
