"""Editing: what must come back comes back, what is said to be kept is kept, and the rest is the model's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tarflow
from flow_cases import assert_close, build, every_kind, images, labels, names, unchanged
from tarflow import SamplingError, SequenceFlow
from tarflow.sampling import editing
from tarflow.sampling.decode import draw_noise
from tarflow.sampling.solver import Solution

# --- reconstruct ------------------------------------------------------------------------------------------------------


@every_kind
def test_a_reconstruction_is_the_image(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 4), labels(flow, 4)
    with unchanged(x, y):
        x_hat, error = tarflow.reconstruct(flow, x, y)
    assert_close(x_hat, x)
    assert torch.equal(error, (x_hat - x).abs().flatten(1).amax(dim=1)) and not x_hat.requires_grad
    assert tarflow.reconstruct(flow, x[:0])[1].shape == (0,)


def test_the_error_is_that_of_the_worst_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional")
    honest = editing.invert

    def invert(*args: Any) -> Solution:
        solution = honest(*args)
        solution.x[1, 2, 3] += 0.5 * (args[0] is flow.blocks[0])
        return solution

    monkeypatch.setattr(editing, "invert", invert)
    _, error = tarflow.reconstruct(flow, images(flow, 3))
    assert_close(error, torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64))


def test_many_images_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional")
    x, y = images(flow, 5), labels(flow, 5)
    monkeypatch.setattr(editing, "default_batch_size", lambda flow, guidance: 2)
    assert_close(tarflow.reconstruct(flow, x, y)[0], x)


def test_it_is_as_wide_as_the_widest() -> None:
    flow = build("conditional", torch.float32)
    wide, _ = tarflow.reconstruct(flow, images(flow, 2))
    assert wide.dtype == torch.float64
    narrow, _ = tarflow.reconstruct(flow, images(flow, 2, dtype=torch.bfloat16))
    assert narrow.dtype == torch.float32
    assert tarflow.resample(flow, images(flow, 2), 1).dtype == torch.float64


# --- interpolate ------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("steps", [2, 5])
def test_the_ends_of_a_walk_are_the_images(name: str, spherical: bool, steps: int) -> None:
    flow = build(name)
    x0, x1 = images(flow, 2)
    walks: list[tuple[Any, Any]] = [(None, None)]
    if flow.conditions:
        given = [flow.conditions.rows(labels(flow, 3), torch.tensor(row)) for row in range(3)]  # one of them is null
        walks += [(given[0], given[0]), (given[0], given[1]), (given[2], given[0])]
    for y0, y1 in walks:
        with unchanged(x0, x1):
            walk = tarflow.interpolate(flow, x0, x1, steps, y0, y1, spherical=spherical)
        assert walk.shape == (steps, *x0.shape) and not walk.requires_grad
        assert_close(walk[0], x0)
        assert_close(walk[-1], x1)


def latents_on(flow: SequenceFlow, walk: Tensor, y: Tensor | None = None) -> Tensor:
    """The latents of a walk, (steps, T·D), in units of the base's standard deviation."""
    return flow.base.standardised(flow.encode(walk, y)[0]).detach().flatten(1)


@pytest.mark.parametrize("name", ["unconditional", "additive", "bounded_conditional"])
def test_the_arc_keeps_the_norm_and_turns_evenly(name: str) -> None:
    flow = build(name)
    u = torch.randn(2, 16, dtype=torch.float64)
    u = 4 * u / u.norm(dim=1, keepdim=True)
    x0, x1 = flow.decode(flow.base.sample(u.view(2, 4, 4))).detach()
    path = latents_on(flow, tarflow.interpolate(flow, x0, x1, 6))
    assert_close(path.norm(dim=1), torch.full((6,), 4.0, dtype=torch.float64))
    cosines = (path[1:] * path[:-1]).sum(1) / 16
    assert_close(cosines, torch.cos(torch.acos((u[0] @ u[1]) / 16) / 5).expand(5))


@pytest.mark.parametrize("name", ["unconditional", "additive"])
def test_the_line_is_straight(name: str) -> None:
    flow = build(name)
    x0, x1 = images(flow, 2)
    path = latents_on(flow, tarflow.interpolate(flow, x0, x1, 5, spherical=False))
    assert_close(path[2], (path[0] + path[4]) / 2)
    assert_close(path[1] - path[0], (path[4] - path[0]) / 4)


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0])
def test_where_there_is_no_arc_the_walk_is_straight(factor: float) -> None:
    flow = build("unconditional")
    x0 = images(flow, 1)
    z0 = flow.encode(x0)[0].detach()
    x1 = flow.decode(factor * z0).detach()
    path = latents_on(flow, tarflow.interpolate(flow, x0[0], x1[0], 3))
    assert_close(path[1], (path[0] + path[2]) / 2)


def test_two_labels_change_in_the_middle() -> None:
    flow = build("conditional")
    x0, x1 = images(flow, 2)
    for steps, y in ((5, [0, 0, 2, 2, 2]), (4, [0, 0, 2, 2])):
        walk = tarflow.interpolate(flow, x0, x1, steps, 0, 2, spherical=False)
        path = latents_on(flow, walk, torch.tensor(y))
        assert_close(path.diff(dim=0), ((path[-1] - path[0]) / (steps - 1)).expand(steps - 1, -1))


BAD_WALKS: dict[str, tuple[dict[str, Any], str]] = {
    "one step": ({"steps": 1}, "^steps: expected at least 2"),
    "a batch": ({"x1": torch.zeros(1, 1, 4, 4)}, r"^x1: expected one image \(1, 4, 4\), got \(1, 1, 4, 4\)"),
    "another size": ({"x0": torch.zeros(1, 4, 5)}, "^x0: expected one image"),
    "one label": ({"y0": 1}, "^y1: expected a label"),
    "the other label": ({"y1": 1}, "^y0: expected a label"),
    "no class": ({"y0": 0, "y1": 3}, "got 3"),
    "integers": ({"x0": torch.zeros(1, 4, 4).long(), "x1": torch.zeros(1, 4, 4).long()}, "floating-point"),
}


@pytest.mark.parametrize("name", BAD_WALKS)
def test_walks_that_make_no_sense_are_refused(name: str) -> None:
    changes, message = BAD_WALKS[name]
    arguments: dict[str, Any] = {"x0": torch.zeros(1, 4, 4), "x1": torch.ones(1, 4, 4)} | changes
    with pytest.raises(ValueError, match=message):
        tarflow.interpolate(build("conditional"), **arguments)


# --- resample ---------------------------------------------------------------------------------------------------------


def patches(flow: SequenceFlow, x: Tensor) -> Tensor:
    """The tokens of x in the order of the first block."""
    return flow.blocks[0].order.forward(flow.event.to_tokens(x)[0])


@every_kind
def test_the_first_block_keeps_pixels(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 3), labels(flow, 3)
    length = flow.sequence.tokens
    for keep in range(length + 1):
        with unchanged(x, y):
            new = tarflow.resample(flow, x, keep, y, seed=3)
        assert_close(patches(flow, new)[:, :keep], patches(flow, x)[:, :keep])
        changed = (patches(flow, new) - patches(flow, x)).abs().amax(dim=2)
        assert (changed[:, keep:] > 1e-3).all() and not new.requires_grad


@every_kind
def test_the_last_block_keeps_latents_and_draws_the_others_as_sample_does(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 3), labels(flow, 3)
    length, last = flow.sequence.tokens, flow.blocks[-1]
    old, _ = flow.encode(x, y)
    fresh = flow.base.sample(draw_noise(flow, torch.arange(3), 3))
    for keep in (0, 1, length // 2, length):
        new, _ = flow.encode(tarflow.resample(flow, x, keep, y, block=-1, seed=3), y)
        assert_close(last.order.forward(new)[:, :keep].detach(), last.order.forward(old)[:, :keep].detach(), 1e-8)
        assert_close(last.order.forward(new)[:, keep:].detach(), last.order.forward(fresh)[:, keep:].detach(), 1e-8)


@every_kind
def test_keeping_all_reconstructs_and_keeping_none_samples(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 3), labels(flow, 3)
    for block in range(-len(flow.blocks), len(flow.blocks)):
        assert_close(tarflow.resample(flow, x, flow.sequence.tokens, y, block=block), x)
        assert_close(tarflow.resample(flow, x, 0, y, block=block, seed=9), tarflow.sample(flow, 3, y, seed=9))


def test_a_block_between_keeps_what_goes_into_it_in_its_own_order() -> None:
    flow = build("unequal_depths")  # three blocks; the one in the middle walks backwards
    x, y = images(flow, 3), labels(flow, 3)
    new = tarflow.resample(flow, x, 2, y, block=1)
    before, after = (flow.blocks[0].encode(patches(flow, image), y)[0] for image in (x, new))
    assert_close(after[:, 2:], before[:, 2:])  # T = 4: the last two
    assert (after[:, :2] - before[:, :2]).abs().min() > 1e-6
    assert torch.equal(new, tarflow.resample(flow, x, 2, y, block=-2))
    assert not torch.allclose(new, tarflow.resample(flow, x, 2, y, block=1, seed=1))


def test_one_block_draws_the_rest_from_the_conditional_density() -> None:
    """E over draws of p(kept, drawn + h) / p(kept, drawn) is 1, where only drawn patches are moved."""
    flow, count = build("one_block"), 3000
    x, y = images(flow, 1).expand(count, -1, -1, -1), torch.full((count,), 2)
    new = tarflow.resample(flow, x, 2, y)
    moved = new.clone()
    moved[:, :, 2:] += 0.1 * images(flow, 1, seed=8)[:, :, 2:]  # T = 4: patches 2 and 3 are the lower half
    with torch.no_grad():
        ratio = (flow.log_prob(moved, y) - flow.log_prob(new, y)).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(count)


def test_nothing_is_drawn_for_no_images() -> None:
    flow = build("conditional")
    assert tarflow.resample(flow, images(flow, 0), 2).shape == (0, 1, 4, 4)


BAD_EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "less than nothing": ({"keep": -1}, "^keep: expected 0 to 4 patches, got -1"),
    "more than all": ({"keep": 5}, "^keep: expected 0 to 4"),
    "no such block": ({"block": 2}, "^block: expected -2 to 1, got 2"),
    "no such block from the end": ({"block": -3}, "^block: expected"),
    "images of another size": ({"x": torch.zeros(2, 1, 5, 4)}, "^x: expected images"),
    "labels of another number": ({"y": torch.tensor([0])}, "^y: expected"),
}


@pytest.mark.parametrize("name", BAD_EDITS)
def test_edits_that_make_no_sense_are_refused(name: str) -> None:
    changes, message = BAD_EDITS[name]
    arguments: dict[str, Any] = {"x": torch.zeros(2, 1, 4, 4), "keep": 2} | changes
    with pytest.raises(ValueError, match=message):
        tarflow.resample(build("conditional"), **arguments)


def test_an_edit_that_overflows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional")
    monkeypatch.setattr(editing, "invert", lambda block, z, y: Solution(z * math.inf, 1, 0.0))
    with pytest.raises(SamplingError, match="image 0 of the edit"):
        tarflow.resample(flow, images(flow, 2), 2)
    with pytest.raises(SamplingError, match="image 0 of the edit"):
        tarflow.interpolate(flow, *images(flow, 2))


@pytest.mark.parametrize("name", names(sequences=True, conditional=True, long=True))
def test_the_label_is_used(name: str) -> None:
    flow = build(name)
    x = images(flow, 2)
    zero, one = (tarflow.resample(flow, x, 1, torch.full((2,), label)) for label in (0, 1))
    assert not torch.allclose(zero, one)
