"""Whatever mode the caller is in: inference mode, no_grad, autocast, functorch, a tracer. Nothing remembers it."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import tarflow
from flow_cases import build, images, labels
from tarflow.evaluation.quality.extractors import small_network
from tarflow.interop import load_official, to_official
from tarflow.model import constants, rotary
from tarflow.model.order import make_order
from tarflow.training.trainer import train
from training_cases import assert_bitwise_equal, run_config, run_weights, splits

SHAPE: dict[str, Any] = dict(image_size=8, patch_size=2, width=64, layers=(1, 1), num_classes=2, log_scale_bound=None)
OFFICIAL = to_official(tarflow.TarFlow(tarflow.TarFlowConfig(**SHAPE)))


def flow() -> tarflow.TarFlow:
    return build("rotary", torch.float32)


MADE: dict[str, Callable[[Path], tarflow.TarFlow]] = {
    "new": lambda _: tarflow.TarFlow(flow().config),
    "loaded": lambda path: tarflow.TarFlow.from_pretrained(path),
    "official": lambda _: load_official({name: tensor.clone() for name, tensor in OFFICIAL.items()}),
    "copied": lambda _: copy.deepcopy(flow()),
    "copied inside another": lambda _: copy.deepcopy(torch.nn.Sequential(flow()))[0],
    "cast": lambda _: tarflow.TarFlow(flow().config).double(),
    "cast inside another": lambda _: torch.nn.Sequential(flow()).double()[0],
}


@pytest.mark.parametrize("name", MADE)
def test_a_flow_made_in_inference_mode_is_as_good_as_any(name: str, tmp_path: Path) -> None:
    flow().save_pretrained(tmp_path)
    with torch.inference_mode():
        made = MADE[name](tmp_path)
        assert tarflow.sample(made, 2, [0, 1], denoise=0.1).isfinite().all()
    x, y = images(made, 2, dtype=torch.float32), [0, 1]
    first, again = tarflow.sample(made, 2, y, seed=1), tarflow.sample(made, 2, y, seed=1)
    torch.testing.assert_close(first, again, atol=1e-3, rtol=1e-3)
    assert tarflow.denoise(made, x, 0.1, y).isfinite().all()
    made.log_prob(x, y).sum().backward()
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert made.distribution(y).sample((2,)).shape[:2] == (2, 2)
    copy.deepcopy(made).log_prob(x, y).sum().backward()


def test_weights_that_are_inference_tensors_all_the_same_can_be_sampled_and_denoised() -> None:
    made = flow().requires_grad_(False)
    x, y = images(made, 2, dtype=torch.float32), [0, 1]
    right = tarflow.sample(made, 2, y, denoise=0.1, solver="sequential"), tarflow.denoise(made, x, 0.1, y)
    with torch.inference_mode():
        weights = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made.load_state_dict(weights, assign=True)
    assert torch.equal(tarflow.sample(made, 2, y, denoise=0.1, solver="sequential"), right[0])
    assert tarflow.sample(made, 2, y).isfinite().all()  # "auto", which remembers by versions that there are none of
    assert torch.equal(tarflow.denoise(made, x, 0.1, y), right[1])


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_training_in_a_mode_of_the_callers_is_training(mode: Callable[[], Any], tmp_path: Path) -> None:
    config = run_config(steps=3, evaluate_every=2, save_every=3)
    train(config, splits(), tmp_path / "right")
    with mode():
        train(config, splits(), tmp_path / "run")
    assert_bitwise_equal(run_weights(tmp_path / "run"), run_weights(tmp_path / "right"))


def test_a_classifier_can_be_trained_in_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_network, "STEPS", 2)
    data = splits().train
    right = small_network.open_extractor(data).features(data.images, 17)
    with torch.inference_mode():
        found = small_network.open_extractor(data).features(data.images, 17)
    assert torch.equal(found, right)


TRACED: dict[str, Callable[[Any, Any], object]] = {
    "export": lambda flow, x: torch.export.export(flow, (x,), strict=False),
    "fake tensors": lambda flow, x: _in_fake_mode(flow, x),
    "vmap": lambda flow, x: torch.func.vmap(lambda a: flow.log_prob(a[None])[0])(x),
    "grad": lambda flow, x: torch.func.grad(lambda a: flow.log_prob(a).sum())(x),
    "compile": lambda flow, x: torch.compile(flow.log_prob, backend="eager")(x),
    "jit": lambda flow, x: torch.jit.trace(flow, (x,), check_trace=False),
}


def _in_fake_mode(flow: tarflow.TarFlow, x: torch.Tensor) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        flow(x)


@pytest.mark.parametrize("name", TRACED)
def test_a_tracer_leaves_nothing_behind(name: str) -> None:
    """A table of rotary angles that a tracer had made stayed in the cache, without any numbers in it."""
    made = flow().requires_grad_(False)
    x, y = images(made, 2, dtype=torch.float32), labels(made, 2)
    constants._KEPT.clear()
    right = made.log_prob(x, y)
    constants._KEPT.clear()
    with warnings.catch_warnings(), contextlib.suppress(NotImplementedError):
        warnings.simplefilter("ignore")
        TRACED[name](made, x)
    found = made.log_prob(x, y)
    assert type(found) is torch.Tensor and torch.equal(found, right)


def test_as_many_tables_of_angles_are_kept_as_are_of_use() -> None:
    for rows in range(1, 2 * constants.MOST_KEPT):
        rotary.rotation_table((rows, 1), 8, make_order("raster", rows), torch.device("cpu"), torch.float32)
        assert len(constants._KEPT) <= constants.MOST_KEPT
