"""What follows from the data, and fine-tuning's first weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from flow_cases import build
from tarflow import TarFlow, sample
from tarflow.config import ConfigError, TrainingConfig
from tarflow.data.batches import batch_indices
from tarflow.data.errors import DataWarning
from tarflow.training.initial import start_from
from tarflow.training.setup import resolve
from training_cases import MODEL, TRAINING, run_config, splits


def test_size_channels_classes_and_levels_follow_from_the_data() -> None:
    config = run_config()
    assert (config.model.image_size, config.model.channels, config.model.num_classes) == (4, 1, 2)
    assert (config.data.levels, config.data.class_names) == (17, ("dark", "light"))
    assert run_config(data={"conditional": False}).model.num_classes == 0


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("model", "num_classes", 7),
        ("model", "depth", 3),
        ("training", "learning_rate", 1.0),
        ("training", "lr", "fast"),
        ("data", "colour", True),
        ("training", "noise_std", -1.0),
    ],
)
def test_contradictions_and_unknown_fields_are_refused_by_name(section: str, field: str, value: object) -> None:
    sections = {"model": dict(MODEL), "data": {}, "training": dict(TRAINING)}
    sections[section][field] = value
    with pytest.raises(ConfigError, match=rf"{section}\.{field}"):
        resolve(sections, splits())


def test_classes_without_a_training_image_are_named() -> None:
    found = splits()
    gaps = dataclasses.replace(found.train, class_names=("dark", "light", "blue", "red"))
    sections = {"model": MODEL, "training": TRAINING}
    with pytest.warns(DataWarning, match="2 of 4 classes have no training image: blue, red"):
        resolve(sections, dataclasses.replace(found, train=gaps))
    resolve(sections | {"data": {"conditional": False}}, dataclasses.replace(found, train=gaps))


def test_steps_or_epochs_are_needed() -> None:
    with pytest.raises(ConfigError, match="steps"):
        resolve({"model": MODEL, "training": {"batch_size": 8}}, splits())


def test_epochs_are_passes_over_the_images_and_one_of_them_is_the_default_warm_up() -> None:
    assert TrainingConfig(epochs=2, batch_size=8).step_counts(30) == (8, 4)
    assert TrainingConfig(epochs=0.5, batch_size=8).step_counts(30) == (2, 2)
    assert TrainingConfig(steps=100, batch_size=8, warmup_steps=0).step_counts(30) == (100, 0)
    assert TrainingConfig(epochs=3, batch_size=64).step_counts(30) == (2, 1)
    assert TrainingConfig(epochs=10, batch_size=64).step_counts(18) == (3, 1)
    assert TrainingConfig(epochs=0.1, batch_size=3).step_counts(30) == (1, 1)  # not 0.1 * 30 / 3 = 1.0000000000000002


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"), [(18, 64, 10), (30, 8, 2), (30, 8, 0.4), (7, 7, 3), (100, 3, 1)]
)
def test_the_batches_of_so_many_epochs_hold_each_image_so_often(images: int, batch_size: int, epochs: float) -> None:
    """And the last one at most a batch more."""
    steps, _ = TrainingConfig(epochs=epochs, batch_size=batch_size).step_counts(images)
    seen = torch.cat([batch_indices(images, batch_size, step, 0) for step in range(steps)])
    assert epochs * images <= len(seen) < epochs * images + batch_size
    least, most = seen.bincount(minlength=images).aminmax()
    assert int(least) >= int(epochs)
    assert int(most) <= -(-len(seen) // images)


@pytest.mark.parametrize(("old", "new"), [(3, 3), (3, 2), (3, 0), (0, 3), (0, 0)])
def test_fine_tuning_starts_from_what_the_source_does_without_a_label(old: int, new: int) -> None:
    source = build("conditional" if old else "unconditional")
    flow = TarFlow(dataclasses.replace(source.config, num_classes=new)).double()
    start_from(flow, source)
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    if old == new:
        y = torch.tensor([0, 1, 2, -1]) if old else None
        assert torch.equal(flow.log_prob(x, y), source.log_prob(x, y))
    elif old:
        torch.testing.assert_close(flow.log_prob(x), source.log_prob(x))
        if new:
            torch.testing.assert_close(flow.log_prob(x, torch.tensor([0, 1, 0, 1])), source.log_prob(x))
    else:
        torch.testing.assert_close(flow.log_prob(x, torch.tensor([0, 1, 2, -1])), source.log_prob(x))


GROWN = ["spline", "affine-mixed", "affine-by-number", "spline-by-number-mixed"]


@pytest.mark.parametrize("classes", [3, 2])
@pytest.mark.parametrize("transform", GROWN)
def test_what_a_transform_adds_starts_as_the_weights_are(transform: str, classes: int) -> None:
    """The same density and the same samples, and what was added learns from there."""
    source = build("conditional")
    config = dataclasses.replace(source.config, transforms=(transform,), bins=5, interval=2.0, num_classes=classes)
    flow = TarFlow(config).double()
    start_from(flow, source)
    x = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(flow.log_prob(x), source.log_prob(x))
    torch.testing.assert_close(sample(flow, 2), sample(source, 2))
    flow.log_prob(x).sum().backward()
    old, new = source.blocks[0], flow.blocks[0]
    added = [p.grad for name, p in new.named_parameters() if name.startswith(("mixing.", "transform.out"))]
    added.append(new.proj_out.weight.grad[len(old.proj_out.weight) :])  # type: ignore[index]
    assert any(grad is not None and bool(grad.any()) for grad in added)


@pytest.mark.parametrize(
    ("source", "wanted", "field"),
    [
        (("spline",), ("affine",), "transforms"),  # what is there is not given up
        (("affine-mixed",), (), "transform"),
        (("affine-by-number",), ("spline-by-number",), "transforms"),  # its parameters lie in another order
        (("additive",), ("affine",), "transforms"),
    ],
)
def test_what_cannot_be_added_to_a_transform_is_said(
    source: tuple[str, ...], wanted: tuple[str, ...], field: str
) -> None:
    config = build("conditional").config
    flow = TarFlow(dataclasses.replace(config, transforms=wanted))
    with pytest.raises(
        ConfigError, match=f"model.{field}: the weights to start from have {source[0]} in block 0, which"
    ):
        start_from(flow, TarFlow(dataclasses.replace(config, transforms=source)))


def test_the_bins_of_a_spline_are_those_of_its_weights() -> None:
    config = dataclasses.replace(build("conditional").config, transform="spline", bins=4)
    with pytest.raises(ConfigError, match=r"model.bins: the weights to start from have 4, got 8"):
        start_from(TarFlow(dataclasses.replace(config, bins=8)), TarFlow(config))


def test_another_architecture_is_refused_by_field() -> None:
    source = build("conditional")
    flow = TarFlow(dataclasses.replace(source.config, layers=(1, 2)))
    with pytest.raises(ConfigError, match=r"model\.layers"):
        start_from(flow, source)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", (2, 8)),  # as many patches
        ("channels", 4),
        ("patch_size", 1),
        ("width", 32),
        ("layers", (1, 2)),
        ("transform", "additive"),
        ("start_token", True),
        ("rotary", True),  # which no tensor tells
        ("head_dim", 4),  # nor this
        ("expansion", 2),
    ],
)
def test_whatever_decides_what_weights_mean_has_to_be_the_same(field: str, value: object) -> None:
    source = build("conditional", torch.float32)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    flow = TarFlow(dataclasses.replace(source.config, **{field: value}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"model.{field}: the weights to start from have "):
        start_from(flow, source)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


def test_a_bound_and_other_classes_may_be_new_and_the_shape_be_said_in_another_way() -> None:
    source = build("conditional", torch.float32)
    changes = {"log_scale_bound": 3.0, "num_classes": 5, "image_size": (4, 4)}
    flow = TarFlow(dataclasses.replace(source.config, **changes))  # type: ignore[arg-type]
    start_from(flow, source)
    assert torch.equal(flow.blocks[1].proj_in.weight, source.blocks[1].proj_in.weight)


def test_a_crop_that_is_wider_than_the_images_is_refused() -> None:
    sections = {"model": dict(patch_size=2, width=64, layers=(1,)), "training": {"steps": 1}}
    assert resolve({**sections, "data": {"crop_padding": 3}}, splits()).data.crop_padding == 3  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"data\.crop_padding: expected less than a side of the images, 4x4, got 4"):
        resolve({**sections, "data": {"crop_padding": 4}}, splits())
