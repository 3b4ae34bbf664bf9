"""Each command from its arguments to its files, in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tarflow
from flow_cases import build
from tarflow import checkpoint
from tarflow.cli import main
from tarflow.interop import to_official

RECIPE = """
[model]
patch_size = 2
width = 16
head_dim = 8
layers = [1, 1]

[training]
steps = 6
batch_size = 8
lr = 1e-3
warmup_steps = 1
sample_every = 6
evaluate_every = 3
save_every = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two kinds, 8x8."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for kind, low in (("dark", 0), ("light", 128)):
        (root / kind).mkdir()
        for i in range(12):
            pixels = generator.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / kind / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def run(folder: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of the folder."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "--recipe", str(recipe), "--data", str(folder), "--out", str(out)]) == 0
    return out


def test_train_leaves_a_run(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert set(config) == {"model", "data", "training"}
    assert config["model"]["num_classes"] == 2 and config["data"]["class_names"] == ["dark", "light"]
    assert (run / "samples" / "step-0000006.png").is_file()
    assert [p.name for p in checkpoint.checkpoints(run)] == ["step-3", "step-6"]


def test_options_override_the_recipe(folder: Path, recipe: Path, tmp_path: Path) -> None:
    arguments = [
        "--steps",
        "2",
        "--lr",
        "5e-4",
        "--layers",
        "1",
        "--no-conditional",
        "--noise",
        "uniform",
        "--channels",
        "1",
    ]
    assert (
        main(["train", "--recipe", str(recipe), "--data", str(folder), "--out", str(tmp_path / "r"), *arguments]) == 0
    )
    config = checkpoint.read_config(tmp_path / "r")
    assert (config.training.steps, config.training.lr, config.training.noise) == (2, 5e-4, "uniform")
    assert (config.model.layers, config.model.num_classes, config.model.channels) == ((1,), 0, 1)
    assert config.model.width == 16  # the recipe's


def test_epochs_given_by_hand_replace_the_steps_of_the_recipe(folder: Path, recipe: Path, tmp_path: Path) -> None:
    assert main(["train", "--recipe", str(recipe), "--data", str(folder), "--out", str(tmp_path), "--epochs", "1"]) == 0
    config = checkpoint.read_config(tmp_path)
    assert (config.training.steps, config.training.epochs) == (None, 1.0)
    assert checkpoint.latest_checkpoint(tmp_path).name == "step-3"  # 22 training images in batches of 8


def test_resume_takes_the_config_of_the_run(run: Path, folder: Path, recipe: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "r")]
    start = ["train", "--recipe", str(recipe), "--data", str(folder), *out]
    assert main([*start, "--lr", "2e-3"]) == 0
    assert main(["train", *out, "--resume"]) == 0
    assert main(["train", *out, "--resume", "--save-every", "1"]) == 0
    assert main(["train", *out, "--resume", "--lr", "1e-3"]) == 2  # the recipe's own value is a change too
    assert checkpoint.read_config(tmp_path / "r").training.lr == 2e-3


def test_init_starts_from_a_run_and_inherits_its_architecture(run: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(folder), "--init", str(run), "--out", str(tmp_path / "r"), "--steps", "1"]
    arguments += ["--lr", "1e-30", "--final-lr", "0", "--batch-size", "4", "--ema-decay", "0"]
    assert main(["train", *arguments]) == 0
    assert checkpoint.read_config(tmp_path / "r").model == checkpoint.read_config(run).model
    tuned = tarflow.TarFlow.from_pretrained(tmp_path / "r")
    for name, tensor in tarflow.TarFlow.from_pretrained(run).state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], tensor, atol=1e-6, rtol=0)


def test_init_starts_from_an_official_checkpoint(folder: Path, tmp_path: Path) -> None:
    flow = build("conditional", torch.float32, image_size=8, channels=3, width=64, head_dim=64)
    torch.save(to_official(flow), tmp_path / "official.pth")
    arguments = ["--data", str(folder), "--init", str(tmp_path / "official.pth"), "--out", str(tmp_path / "r")]
    assert main(["train", *arguments, "--steps", "1", "--batch-size", "4"]) == 0
    model = checkpoint.read_config(tmp_path / "r").model
    assert (model.width, model.num_classes) == (64, 2)  # three classes there, two here


def test_sample_sheet_folder_and_archive_are_the_same_images(run: Path, tmp_path: Path) -> None:
    common = ["sample", str(run), "-n", "5", "--classes", "light", "0", "--seed", "3"]
    for out in ("sheet.png", "archive.npz", "folder"):
        assert main([*common, "--out", str(tmp_path / out)]) == 0
    archive = np.load(tmp_path / "archive.npz")
    assert archive["images"].shape == (5, 8, 8, 3) and archive["labels"].tolist() == [1, 0, 1, 0, 1]
    files = sorted((tmp_path / "folder").iterdir())
    assert [f.name for f in files] == ["0-light.png", "1-dark.png", "2-light.png", "3-dark.png", "4-light.png"]
    for file, pixels in zip(files, archive["images"], strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), pixels)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (3 * 34 + 2, 2 * 34 + 2, 3)  # two columns, one a class, each pixel 4x4
    assert np.array_equal(sheet[2:34:4, 2:34:4], archive["images"][0])


def test_sample_is_what_python_draws_and_denoises_with_the_stored_sigma(run: Path, tmp_path: Path) -> None:
    # A named solver: which one "auto" finds fastest differs from run to run, and with it the last bit of a pixel.
    arguments = ["sample", str(run), "-n", "4", "--guidance", "1.5", "--solver", "sequential"]
    assert main([*arguments, "--out", str(tmp_path / "a.npz")]) == 0
    flow = tarflow.TarFlow.from_pretrained(run)
    labels = torch.tensor([0, 1, 0, 1])
    x = tarflow.sample(flow, 4, labels, tarflow.Guidance(1.5), denoise=0.05, solver="sequential")
    expected = ((x.clamp(-1, 1) + 1) * 255 / 2).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(tmp_path / "a.npz")["images"], expected)
    assert main([*arguments, "--no-denoise", "--out", str(tmp_path / "b.npz")]) == 0
    assert not np.array_equal(np.load(tmp_path / "b.npz")["images"], expected)


def test_evaluate_prints_one_json_object(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--draws", "2"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["bits_per_dim"] is None and values["noisy_bits_per_dim"] > 0  # a model of noisy images
    assert values["measure"] == "density of x + 0.05·ε"
    assert values["labels"] == "given" and values["split"] == "held-out" and values["images"] == 2
    assert values["gaussian_yardstick"] is not None


def test_evaluate_of_a_uniform_model_is_in_bits_per_dim(
    folder: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--recipe", str(recipe), "--data", str(folder), "--noise", "uniform", "--out", str(tmp_path / "r")]
    assert main(["train", *arguments]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "r"), "--data", str(folder / "dark"), "--labels", "marginal"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["bits_per_dim"] > 0 and values["noisy_bits_per_dim"] is None
    assert (values["split"], values["images"], values["labels"]) == ("all", 12, "marginal")
    assert values["gaussian_yardstick"] is None  # nothing to fit it to


def test_denoise_adds_noise_and_removes_it(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["denoise", str(run), str(folder), "--add-noise", "--out", str(tmp_path / "clean.npz")]) == 0
    assert "PSNR" in capsys.readouterr().err
    archive = np.load(tmp_path / "clean.npz")
    assert archive["images"].shape == (24, 8, 8, 3) and archive["labels"].tolist() == [0] * 12 + [1] * 12


def test_denoise_is_what_python_computes(run: Path, folder: Path, tmp_path: Path) -> None:
    one = folder / "dark" / "00.png"
    assert main(["denoise", str(run), str(one), "--class", "dark", "--out", str(tmp_path / "a.npz")]) == 0
    pixels = torch.from_numpy(np.asarray(Image.open(one)).copy()).permute(2, 0, 1)[None]
    x = tarflow.denoise(tarflow.TarFlow.from_pretrained(run), pixels.float() * 2 / 255 - 1, 0.05, torch.tensor([0]))
    expected = ((x.clamp(-1, 1) + 1) * 255 / 2).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(np.load(tmp_path / "a.npz")["images"], expected)


def test_convert_reads_the_noise_from_the_name_and_the_result_samples(tmp_path: Path) -> None:
    flow = build("conditional", torch.float32, width=64, head_dim=64)
    file = tmp_path / "mnist_model_2_64_2_1_0.10.pth"
    torch.save(to_official(flow), file)
    assert main(["convert", str(file), str(tmp_path / "ours")]) == 0
    run = checkpoint.open_run(tmp_path / "ours")
    assert run.sigma == 0.1 and run.levels == 256
    x = torch.randn(3, 1, 4, 4)
    assert torch.equal(run.flow.log_prob(x), flow.log_prob(x))
    assert main(["sample", str(tmp_path / "ours"), "-n", "3", "--out", str(tmp_path / "s.png")]) == 0
    assert main(["convert", str(file), str(tmp_path / "ours")]) == 2  # not twice
    assert main(["convert", str(file), str(tmp_path / "uniform"), "--noise-std", "0"]) == 0
    assert checkpoint.open_run(tmp_path / "uniform").sigma is None


def test_one_checkpoint_of_a_run_is_a_run_too(run: Path, tmp_path: Path) -> None:
    step = run / "checkpoints" / "step-3"
    assert main(["sample", str(step), "-n", "2", "--out", str(tmp_path / "s.png")]) == 0


def test_a_directory_with_a_model_alone_needs_to_be_told_the_noise(tmp_path: Path) -> None:
    build("unconditional", torch.float32).save_pretrained(tmp_path / "m")
    out = ["--out", str(tmp_path / "s.png"), "-n", "2"]
    assert main(["sample", str(tmp_path / "m"), *out]) == 2
    assert main(["sample", str(tmp_path / "m"), *out, "--no-denoise"]) == 0
    assert main(["sample", str(tmp_path / "m"), *out, "--noise-std", "0.1"]) == 0


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tarflow {tarflow.__version__}\n"
    for arguments in ([], ["--help"]):
        assert main(arguments) == 0
        assert "evaluate" in capsys.readouterr().out
    for command in ("demo", "train", "sample", "evaluate", "score", "denoise", "report", "convert"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert f"tarflow {command}" in text and "Examples" in text, command


def test_interrupted_training_exits_with_the_signal(
    folder: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os
    import signal

    from tarflow.cli.progress import Progress

    monkeypatch.setattr(Progress, "report", lambda self, metrics: os.kill(os.getpid(), signal.SIGTERM))
    code = main(
        ["train", "--recipe", str(recipe), "--data", str(folder), "--out", str(tmp_path / "r"), "--steps", "50"]
    )
    assert code == 128 + signal.SIGTERM
    assert "continue with --resume" in capsys.readouterr().err
    assert checkpoint.latest_checkpoint(tmp_path / "r").name == "step-1"
    assert sys.stdout is not None
