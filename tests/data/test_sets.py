"""A set of images: a choice of it by a seed, and the digest by which a resumed run knows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tarflow.data.load import load
from tarflow.data.sets import ImageSet
from tarflow.data.store.write import prepare


def set_of(count: int, shape: tuple[int, int, int] = (1, 2, 3), first: int = 0) -> ImageSet:
    pixels = (first + torch.arange(count * 6) % 251).to(torch.uint8).view(count, *shape)
    return ImageSet(pixels, torch.arange(count) % 3, tuple(f"{k}.png" for k in range(count)), 256, ("a", "b", "c"))


def test_a_choice_is_a_function_of_its_seed_and_keeps_the_order() -> None:
    images = set_of(30)
    chosen = [images.choice(8, seed) for seed in range(6)]
    assert len({found.names for found in chosen}) == 6
    assert images.choice(8, 3).names == chosen[3].names
    for found in chosen:
        places = [int(name.removesuffix(".png")) for name in found.names]
        assert places == sorted(set(places)) and len(places) == 8
        assert torch.equal(found.images, images.images[places]) and found.labels is not None
        assert found.labels.tolist() == [place % 3 for place in places]
    assert images.choice(30, 0).names == images.choice(99, 1).names == images.names


def test_a_choice_is_no_prefix_and_every_image_is_chosen_as_often() -> None:
    images = set_of(20)
    counts = torch.zeros(20)
    for seed in range(400):
        counts[[int(name.removesuffix(".png")) for name in images.choice(5, seed).names]] += 1
    assert counts.min() > 60 and counts.max() < 145  # 100 each in expectation, with a deviation of 9


def test_a_choice_of_a_mapped_set_is_that_of_the_set_in_memory(tmp_path: Path) -> None:
    for k in range(12):
        Image.fromarray(np.full((4, 4), 20 * k, np.uint8)).save(tmp_path / f"{k:02}.png")
    prepare(str(tmp_path), tmp_path / ".store", held_out_fraction=0.25)
    mapped, memory = load(str(tmp_path / ".store")), load(str(tmp_path), held_out_fraction=0.25)
    choices = [memory.train.choice(4, seed) for seed in range(5)]
    assert len({choice.names for choice in choices}) > 1
    for seed, choice in enumerate(choices):
        found = mapped.train.choice(4, seed)
        assert found.names == choice.names and torch.equal(found.images, choice.images)


@pytest.mark.parametrize("what", ["shape", "labels", "no labels", "pixels", "order"])
def test_the_digest_is_of_shape_pixels_order_and_labels(what: str) -> None:
    images = set_of(9)
    others = {
        "shape": ImageSet(images.images.view(9, 1, 3, 2), images.labels, images.names, 256, images.class_names),
        "labels": ImageSet(images.images, (images.labels + 1) % 3, images.names, 256, images.class_names),  # type: ignore[operator]
        "no labels": ImageSet(images.images, None, images.names, 256, ()),
        "pixels": set_of(9, first=1),
        "order": images.subset(range(8, -1, -1)),
    }
    assert images.digest() == set_of(9).digest() != others[what].digest()
