"""A config refuses what cannot work and names the field; what it takes, it keeps through JSON and TOML."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tarflow.config import ConfigError, DataConfig, RunConfig, TarFlowConfig, TrainingConfig, from_dict, to_dict

SMALL: dict[str, Any] = {"image_size": 8, "channels": 1, "patch_size": 2, "width": 64, "layers": (1, 1)}


def named(field: str) -> str:
    """A pattern for a message that begins with the field's name."""
    return rf"^{field}\b"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("image_size", -8),
        ("image_size", (8, 0)),
        ("image_size", (8, 8, 8)),
        ("image_size", "8"),
        ("image_size", 8.5),
        ("image_size", True),
        ("image_size", None),
        ("patch_size", 0),
        ("patch_size", 3),  # does not divide 8
        ("patch_size", 16),
        ("width", 0),
        ("width", 96),  # no multiple of head_dim 64
        ("width", math.nan),
        ("width", math.inf),
        ("layers", ()),
        ("layers", (1, 0)),
        ("layers", (1, 1.5)),
        ("layers", 4),
        ("layers", "44"),
        ("channels", 0),
        ("num_classes", -1),
        ("num_classes", 2.5),
        ("transform", "scale"),
        ("order", "raster"),
        ("transform", None),
        ("log_scale_bound", 0),
        ("log_scale_bound", -4.0),
        ("log_scale_bound", math.inf),
        ("log_scale_bound", math.nan),
        ("log_scale_bound", "4"),
        ("head_dim", 0),
        ("head_dim", 48),  # 64 is no multiple of it: the message is about width
        ("expansion", 0),
    ],
)
def test_a_model_that_cannot_be_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=named("width" if (field, value) == ("head_dim", 48) else field)):
        TarFlowConfig(**(SMALL | {field: value}))


@pytest.mark.parametrize(("size", "patch"), [((8, 6), 4), ((6, 8), 4)])
def test_a_patch_must_divide_both_sides(size: tuple[int, int], patch: int) -> None:
    with pytest.raises(ConfigError, match=rf"patch_size: expected a divisor .* {size[0]}x{size[1]}, got 4"):
        TarFlowConfig(**(SMALL | {"image_size": size, "patch_size": patch}))


def test_an_additive_model_has_no_log_scale_to_bound() -> None:
    with pytest.raises(ConfigError, match=named("log_scale_bound")):
        TarFlowConfig(**SMALL, transform="additive", log_scale_bound=4.0)
    assert TarFlowConfig(**SMALL, transform="additive").log_scale_bound is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("levels", 1),
        ("levels", 257),
        ("levels", 16.5),
        ("held_out_fraction", 0),
        ("held_out_fraction", 1),
        ("held_out_fraction", math.nan),
        ("split_seed", 0.5),
        ("source", 3),
        ("class_names", (1, 2)),
        ("class_names", "cat"),
        ("conditional", 1),
        ("flip", "yes"),
        ("skip_bad", 0),
    ],
)
def test_data_that_cannot_be_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=named(field)):
        DataConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise", "poisson"),
        ("noise_std", 0),  # gaussian noise of no width
        ("noise_std", -0.1),
        ("noise_std", math.inf),
        ("steps", 0),
        ("steps", 1.5),
        ("epochs", 0),
        ("epochs", -1.0),
        ("batch_size", 0),
        ("batch_size", math.nan),
        ("lr", 0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", "1e-4"),
        ("final_lr", -1e-6),
        ("final_lr", 1.0),  # above lr
        ("warmup_steps", -1),
        ("betas", (0.9,)),
        ("betas", (0.9, 0.95, 0.99)),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("weight_decay", -1e-4),
        ("clip_norm", -1.0),
        ("clip_norm", math.nan),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
        ("label_drop", 1.0),
        ("label_drop", -0.1),
        ("precision", "fp16"),
        ("accumulate", 0),
        ("accumulate", 3),  # of 256
        ("accumulate", 512),
        ("checkpoint_activations", "all"),
        ("checkpoint_activations", True),
        ("compile", "yes"),
        ("seed", 0.5),
        ("log_every", 0),
        ("evaluate_every", 0),
        ("evaluate_images", 0),
        ("sample_every", -1),
        ("save_every", 0),
        ("keep_last", 0),
    ],
)
def test_training_that_cannot_work_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=named(field)):
        TrainingConfig(**{field: value})


def test_steps_and_epochs_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="steps and epochs: expected one of them, got steps=10 and epochs=2"):
        TrainingConfig(steps=10, epochs=2)


def test_micro_batches_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match="^accumulate: expected a divisor of batch_size 12, got 5$"):
        TrainingConfig(batch_size=12, accumulate=5)
    assert [TrainingConfig(batch_size=12, accumulate=n).accumulate for n in (1, 2, 3, 4, 6, 12)] == [1, 2, 3, 4, 6, 12]


def test_uniform_noise_needs_no_standard_deviation() -> None:
    assert TrainingConfig(noise="uniform", noise_std=0.0).noise_std == 0


def test_a_clip_norm_of_zero_does_not_clip() -> None:
    assert TrainingConfig(clip_norm=0).clip_norm is None
    assert TrainingConfig(clip_norm=None).clip_norm is None


def test_every_refusal_of_a_value_says_what_was_expected_and_what_came() -> None:
    with pytest.raises(ConfigError, match="^batch_size: expected a whole number, got 1.5$"):
        TrainingConfig(batch_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="^noise: expected 'gaussian' or 'uniform', got 'poisson'$"):
        TrainingConfig(noise="poisson")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^layers\[1\]: expected a whole number, got '2'$"):
        TarFlowConfig(**(SMALL | {"layers": (1, "2")}))


@pytest.mark.parametrize("cls", [TarFlowConfig, DataConfig, TrainingConfig])
def test_every_field_has_help_and_rejects_a_value_of_no_sensible_type(cls: type) -> None:
    for field in dataclasses.fields(cls):
        assert field.metadata["help"]
        values = (SMALL if cls is TarFlowConfig else {}) | {field.name: object()}
        with pytest.raises(ConfigError, match=named(field.name)):
            cls(**values)


def test_an_unknown_field_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"^recipe.toml: training\.batchsize: no such field; perhaps batch_size\?$"):
        from_dict(TrainingConfig, {"batchsize": 3}, "recipe.toml: training")
    with pytest.raises(ConfigError, match="^xyzzy: no such field; known: source, levels, "):
        from_dict(DataConfig, {"xyzzy": 3})


def test_a_missing_field_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"^model\.width: missing$"):
        from_dict(TarFlowConfig, {k: v for k, v in SMALL.items() if k != "width"}, "model")


def test_what_the_dataclass_refuses_carries_the_place() -> None:
    with pytest.raises(ConfigError, match=r"^a\.json: model\.patch_size: expected a divisor"):
        from_dict(TarFlowConfig, SMALL | {"patch_size": 3}, "a.json: model")
    with pytest.raises(ConfigError, match=r"^run\.model\.width: expected a multiple"):
        from_dict(RunConfig, {"model": SMALL | {"width": 65}}, "run")


@pytest.mark.parametrize("values", [None, [], 3, "model"])
def test_a_section_must_be_a_table(values: Any) -> None:
    with pytest.raises(ConfigError, match="^model: expected a table of fields"):
        from_dict(TarFlowConfig, values, "model")


def test_lists_and_whole_floats_become_what_the_fields_are() -> None:
    text = "image_size = [8, 4]\nchannels = 1\npatch_size = 2.0\nwidth = 64\nlayers = [1, 2]\nlog_scale_bound = 4\n"
    from_toml = from_dict(TarFlowConfig, tomllib.loads(text))
    from_json = from_dict(TarFlowConfig, json.loads(json.dumps(tomllib.loads(text))))
    assert from_toml == from_json
    assert (from_toml.image_size, from_toml.layers) == ((8, 4), (1, 2))
    assert type(from_toml.patch_size) is int
    assert type(from_toml.log_scale_bound) is float
    assert hash(from_toml) == hash(from_json), "frozen and made of tuples, so it can be a key"


def test_a_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TarFlowConfig(**SMALL).width = 128  # type: ignore[misc]
    with pytest.raises(ConfigError, match=named("width")):
        dataclasses.replace(TarFlowConfig(**SMALL), width=65)


def test_the_shapes_follow() -> None:
    config = TarFlowConfig(image_size=(8, 12), channels=3, patch_size=4, width=128, layers=(2, 1, 1))
    assert config.image_shape == (8, 12)
    assert config.grid == (2, 3)
    assert (config.num_patches, config.patch_dim, config.num_dims) == (6, 48, 8 * 12 * 3)
    assert TarFlowConfig(**SMALL).image_shape == (8, 8)


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    patch_size=st.integers(1, 4),
    heads=st.integers(1, 4),
    layers=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    channels=st.integers(1, 5),
    num_classes=st.integers(0, 1000),
    bound=st.none() | st.floats(1e-3, 1e3),
)
def test_every_model_config_survives_json(
    rows: int,
    columns: int,
    patch_size: int,
    heads: int,
    layers: list[int],
    channels: int,
    num_classes: int,
    bound: float | None,
) -> None:
    assume(rows * columns > 1)
    config = TarFlowConfig(
        image_size=(rows * patch_size, columns * patch_size),
        channels=channels,
        patch_size=patch_size,
        width=16 * heads,
        head_dim=16,
        layers=tuple(layers),
        num_classes=num_classes,
        log_scale_bound=bound,
    )
    assert from_dict(TarFlowConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert config.num_patches * config.patch_dim == config.num_dims


def test_a_run_config_keeps_what_it_lacks() -> None:
    only_a_model = from_dict(RunConfig, {"model": SMALL})
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(only_a_model)))) == only_a_model
    whole = RunConfig(TarFlowConfig(**SMALL), DataConfig(class_names=("a", "b")), TrainingConfig(steps=5))
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(whole)))) == whole


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("nan")])
def test_numbers_that_no_float_can_hold_are_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"lr: expected a number"):
        from_dict(TrainingConfig, {"lr": value}, "training")


def test_a_sequence_of_one_token_is_refused() -> None:
    """It would be N(0, 1), whatever the data and the class: nothing is before the first token to transform it by."""
    for fields in (
        {"patch_size": 8},
        {"image_size": (1, 1), "patch_size": 1},
        {"patch_size": 8, "transform": "additive"},
    ):
        with pytest.raises(ConfigError, match="patch_size: expected two patches at least"):
            TarFlowConfig(**(SMALL | fields))
    assert TarFlowConfig(**(SMALL | {"image_size": (8, 16), "patch_size": 8})).num_patches == 2
