"""The objective is -log p up to its constant, and a batch is a function of the seed and the step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flow_cases import BASE, build
from tarflow import NULL_CLASS, TarFlow, TarFlowConfig
from tarflow.config import TrainingConfig
from tarflow.data.batches import batch_indices
from tarflow.model.base import VARIANCE_RATE
from tarflow.model.condition import Classes
from tarflow.ranks import Ranks
from tarflow.training.step import crops, objective, training_batch

IMAGES = torch.randint(0, 17, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.arange(40) % 3


def batch(
    step: int, *, labels: torch.Tensor | None = LABELS, flip: bool = False, crop_padding: int = 0, **fields: object
) -> tuple:
    config = TrainingConfig(**{"batch_size": 16, "steps": 10, **fields})
    rows = batch_indices(len(IMAGES), config.batch_size, step, config.seed)
    chosen = None if labels is None else labels[rows]
    how = {"config": config, "condition": Classes(10), "measure": config.measure(17)}
    return training_batch(IMAGES[rows], chosen, step, **how, flip=flip, crop_padding=crop_padding)


def test_is_minus_the_log_density_a_dimension_without_its_constant() -> None:
    flow = build("conditional")
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, -1, 0])
    z, ladj = flow(x, y)
    expected = -flow.log_prob(x, y).mean() / 16 - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(objective(z, ladj), expected)


def test_the_same_step_is_the_same_batch_and_another_step_is_not() -> None:
    for fields in ({}, {"noise": "uniform"}, {"flip": True}):
        (x, y), (again, labels) = batch(3, **fields), batch(3, **fields)
        assert torch.equal(x, again) and torch.equal(y, labels)
        assert not torch.equal(x, batch(4, **fields)[0])
        assert not torch.equal(x, batch(3, seed=1, **fields)[0])


def test_noise_is_of_the_asked_kind_and_size() -> None:
    x, _ = batch(0, batch_size=4000, noise_std=0.3)
    clean = (x + 1) * 8  # levels, of which neighbours are 1 apart
    assert ((clean - clean.round()).abs() > 0.05).any()
    wide = torch.cat([batch(s, batch_size=400, noise_std=0.3)[0] for s in range(5)])
    narrow = torch.cat([batch(s, batch_size=400, noise_std=0.1)[0] for s in range(5)])
    ratio = (wide - narrow).std() / 0.2  # the same draws, scaled by σ
    assert ratio == pytest.approx(1, abs=0.02)
    uniform, _ = batch(0, batch_size=400, noise="uniform")
    assert uniform.min() >= -1 and uniform.max() < 1


def test_labels_are_dropped_at_the_asked_rate() -> None:
    _, y = batch(0, batch_size=4000, label_drop=0.25)
    assert float((y == NULL_CLASS).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert set(y.tolist()) == {NULL_CLASS, 0, 1, 2}
    assert int(batch(0, batch_size=4000, label_drop=0.0)[1].min()) == 0
    assert batch(0, labels=None)[1] is None


def test_flipping_mirrors_about_half() -> None:
    plain = batch(0, batch_size=400, noise="uniform", label_drop=0.0)[0]
    flipped = batch(0, batch_size=400, noise="uniform", label_drop=0.0, flip=True)[0]
    levels = [((x + 1) * 17 / 2).floor() for x in (plain, flipped)]
    mirrored = (levels[0].flip(-1) == levels[1]).flatten(1).all(1)
    kept = (levels[0] == levels[1]).flatten(1).all(1)
    assert bool((mirrored | kept).all())
    assert 0.4 < float(mirrored.double().mean()) < 0.6


def test_images_are_not_written_to() -> None:
    before = IMAGES.clone()
    batch(0, flip=True)
    assert torch.equal(IMAGES, before)


def test_base_variance_follows_the_latents_of_the_additive_variant_only() -> None:
    flow = TarFlow(TarFlowConfig(**BASE, transform="additive"))
    energy = torch.rand(4, 4) * 3
    flow.base.update(energy, torch.tensor(True))
    expected = (1 - VARIANCE_RATE) + VARIANCE_RATE * energy
    torch.testing.assert_close(flow.base.variance, expected)
    kept = flow.base.variance.clone()
    flow.base.update(energy * float("nan"), torch.tensor(False))
    assert torch.equal(flow.base.variance, kept)
    affine = TarFlow(TarFlowConfig(**BASE))
    affine.base.update(energy)
    assert not affine.base.follows


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_shares_of_a_batch_are_the_batch(size: int) -> None:
    """Noise, flips and dropped labels, whatever the number of processes."""
    whole_x, whole_y = batch(3, flip=True, crop_padding=2, label_drop=0.5)
    config = TrainingConfig(batch_size=16, steps=10, label_drop=0.5)
    chosen = batch_indices(len(IMAGES), 16, 3, 0)
    for rank in range(size):
        rows = Ranks(rank, size).share(16)
        pixels, labels = IMAGES[chosen[rows]], LABELS[chosen[rows]]
        how = {"config": config, "condition": Classes(10), "measure": config.measure(17), "rows": rows}
        x, y = training_batch(pixels, labels, 3, **how, flip=True, crop_padding=2)
        assert torch.equal(x, whole_x[rows]) and torch.equal(y, whole_y[rows])


@pytest.mark.parametrize("padding", [1, 3])
def test_a_random_crop_is_a_window_of_the_image_continued_by_reflection(padding: int) -> None:
    images = torch.randint(0, 256, (50, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    continued = np.pad(images.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)), mode="reflect")
    places = [(down, right) for down in range(-padding, padding + 1) for right in range(-padding, padding + 1)]
    moved = torch.tensor(places).repeat(2, 1)[:50]
    for image, whole, (down, right) in zip(crops(images[: len(moved)], moved), continued, moved.tolist(), strict=False):
        top, left = padding + down, padding + right
        assert np.array_equal(image.numpy(), whole[:, top : top + 4, left : left + 6])


def test_crops_are_a_function_of_seed_and_step_and_reach_every_place() -> None:
    noise = {"noise_std": 1e-6, "label_drop": 0.0}
    for other in ({"step": 4}, {"seed": 1}):
        first = batch(3, crop_padding=1, **noise)[0]
        assert torch.equal(first, batch(3, crop_padding=1, **noise)[0])
        assert not torch.equal(first, batch(**{"step": 3, **other}, crop_padding=1, **noise)[0])
    config = TrainingConfig(batch_size=900, steps=1, **noise)
    pixels = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(900, -1, -1, -1)
    how = {"config": config, "condition": Classes(10), "measure": config.measure(17)}
    x, _ = training_batch(pixels, None, 0, **how, flip=False, crop_padding=1)
    _, counts = x.round(decimals=3).unique(dim=0, return_counts=True)
    assert len(counts) == 9 and int(counts.min()) > 60  # of 100 expected; 9.4 is a standard deviation
