"""Every recipe builds the configs of a run, says what it costs, and a wrong one is refused by name."""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path

import pytest

from tarflow import recipes
from tarflow.config import ConfigError, DataConfig, RunConfig, TarFlowConfig, TrainingConfig, from_dict, to_dict

# What follows from the data, where the recipe leaves it to them: image size, channels, classes.
DATA = {
    "digits": (8, 1, 10),
    "digits-likelihood": (8, 1, 10),
    "fashion-mnist": (28, 1, 10),
    "mnist": (28, 1, 10),
    "cifar10": (32, 3, 10),
    "imagenet64": (64, 3, 1000),
    "imagenet64-unconditional": (64, 3, 0),
    "imagenet64-likelihood": (64, 3, 0),
    "imagenet128": (128, 3, 1000),
    "afhq256": (256, 3, 3),
    "default": (64, 3, 0),
    "best": (28, 1, 10),
}

# patch, width, layers, σ (None: uniform noise), batch, epochs, learning rate, label drop: the paper's and its code's.
PUBLISHED = {
    "imagenet64-likelihood": (2, 768, (8,) * 8, None, 256, 100, 1e-4, 0),
    "imagenet64-unconditional": (2, 768, (8,) * 8, 0.05, 256, 200, 1e-4, 0),
    "imagenet64": (2, 768, (8,) * 8, 0.05, 256, 200, 1e-4, 0.1),
    "imagenet128": (4, 1024, (8,) * 8, 0.15, 768, 320, 1e-4, 0.1),
    "afhq256": (8, 768, (8,) * 8, 0.07, 256, 4000, 1e-4, 0.1),
    "mnist": (4, 128, (4,) * 4, 0.1, 256, 100, 2e-3, 0.1),
}


def build(name: str) -> RunConfig:
    """The recipe's config, with what follows from the data filled in."""
    sections = recipes.load(name)
    size, channels, classes = DATA[name]
    data = from_dict(DataConfig, sections["data"], f"{name}: data")
    derived = {"image_size": size, "channels": channels, "num_classes": classes if data.conditional else 0}
    model = from_dict(TarFlowConfig, derived | sections["model"], f"{name}: model")
    return RunConfig(model, data, from_dict(TrainingConfig, sections["training"], f"{name}: training"))


def test_the_table_is_complete() -> None:
    assert recipes.names() == sorted(DATA)


@pytest.mark.parametrize("name", sorted(DATA))
def test_a_recipe_builds(name: str) -> None:
    config = build(name)
    assert config.training is not None
    assert (config.training.steps is None) != (config.training.epochs is None), "steps or epochs, exactly one"
    for field in ("image_size", "channels"):  # where a recipe does type what the data say, it is the same
        assert getattr(config.model, field) == DATA[name][("image_size", "channels").index(field)]


@pytest.mark.parametrize("name", sorted(DATA))
def test_a_config_survives_json(name: str) -> None:
    config = build(name)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", sorted(DATA))
def test_what_follows_from_the_data_is_not_typed(name: str) -> None:
    sections = recipes.load(name)
    assert not {"levels", "class_names"} & sections["data"].keys()
    assert "num_classes" not in sections["model"]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_experiments_are_the_published_ones(name: str) -> None:
    config = build(name)
    model, training = config.model, config.training
    assert training is not None
    sigma = training.noise_std if training.noise == "gaussian" else None
    got = (model.patch_size, model.width, model.layers, sigma, training.batch_size, training.epochs, training.lr)
    assert (*got, training.label_drop) == PUBLISHED[name]
    assert (model.transform, model.log_scale_bound, model.head_dim, model.expansion) == ("affine", None, 64, 4)
    assert (training.betas, training.weight_decay, training.final_lr) == ((0.9, 0.95), 1e-4, 1e-6)
    assert training.warmup_steps is None, "one epoch"
    assert (training.clip_norm, training.ema_decay) == (None, 0.0)


@pytest.mark.parametrize("name", sorted(DATA))
def test_the_header_says_how_and_what_for(name: str) -> None:
    header = []
    for line in (resources.files(recipes) / f"{name}.toml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    assert header[0].endswith("."), "the first line says what it is"
    entries = dict(re.findall(r"^(Source|Command|Cost|Expected): +(\S.*)$", "\n".join(header), re.M))
    assert list(entries) == ["Source", "Command", "Cost", "Expected"]
    assert re.search("published|estimated|measured", entries["Cost"])
    assert re.search(r"\d|not yet measured", entries["Expected"])

    words = shlex.split(entries["Command"])
    assert words[:2] == ["tarflow", "train"]
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert options.get("--recipe", "default") == name
    assert "--out" in options
    source = DataConfig(**recipes.load(name)["data"]).source
    assert "--data" in options or source in ("digits", "fashion-mnist"), "a placeholder has to be replaced"


def test_an_unknown_name_is_refused_with_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"recipe imagnet64: no such recipe; perhaps imagenet64\? known: afhq256, be"):
        recipes.load("imagnet64")
    with pytest.raises(ConfigError, match="recipe ../digits: no such recipe"):
        recipes.load("../digits")
    with pytest.raises(ConfigError, match="recipe : no such recipe; known"):
        recipes.load("")


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[training]\nsteps = 3\n")
    assert recipes.load(path) == recipes.load(str(path)) == {"model": {}, "data": {}, "training": {"steps": 3}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[model]\nwidth = 64\nlayers 1\n", "not a readable TOML file: .*line 3"),
        (b'[model]\nname = "\xff"\n', "not a readable TOML file: .*utf-8"),
        (b"[modle]\nwidth = 64\n", "modle: no such section; known: model, data, training"),
        (b"width = 64\n", "width: no such section"),
        (b"model = 64\n", r"model: expected a section \[model\] of fields, got 64"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=f"mine.toml: {message}"):
        recipes.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml: no such file; .*digits"):
        recipes.load(tmp_path / "mine.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.toml: no such file"):
        recipes.load(tmp_path / "folder.toml")


@pytest.mark.parametrize(
    "value", ["[" * 100_000 + "]" * 100_000, "{a=" * 5_000 + "1" + "}" * 5_000, "1" + "0" * 5_000, "1" + "0" * 400]
)
def test_a_recipe_nested_too_deep_or_with_endless_numbers_is_one_line(value: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(f"[training]\nlr = {value}\n")
    (tmp_path / "c.toml").write_text(f"[training]\nlr = '{'x' * 1_000_000}'\n")
    assert recipes.load(tmp_path / "c.toml")  # in no time
    (tmp_path / "b.toml").write_text(f"[training]\n{'a.' * 20_000}b = 1\n")
    with pytest.raises(ConfigError, match=r"b\.toml: not a readable TOML file: tables or lists nested too deep"):
        recipes.load(tmp_path / "b.toml")
    with pytest.raises(ConfigError, match=r"a\.toml: not a readable TOML file|training\.lr: expected a number"):
        from_dict(TrainingConfig, recipes.load(tmp_path / "a.toml")["training"], "training")
