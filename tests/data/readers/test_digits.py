"""The digits that scikit-learn carries."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from tarflow.data.load import load, load_all
from tarflow.measure import Measure


def test_the_digits_are_scikit_learns_own() -> None:
    digits, skipped = load_all("digits")
    reference = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert torch.equal(digits.images[:, 0].double(), torch.from_numpy(reference.images))
    assert digits.labels is not None
    assert digits.labels.tolist() == reference.target.tolist()
    assert digits.levels == 17
    assert int(digits.images.max()) == 16
    assert digits.class_names == tuple("0123456789")
    assert digits.names[17] == "digits:17"
    assert skipped == ()
    x = Measure(digits.levels, "gaussian", 1.0).clean(digits.images)
    assert (float(x.min()), float(x.max())) == (-1, 1)


def test_a_tenth_of_the_digits_is_held_out() -> None:
    splits = load("digits")
    assert not splits.own_split
    assert (len(splits.train), len(splits.held_out)) == (1617, 180)


def test_scaled_digits_stay_within_their_levels() -> None:
    """Bicubic filters overshoot, and Pillow clips at 255."""
    for size in (16, 5, (8, 12)):
        digits, _ = load_all("digits", image_size=size, channels=3)
        assert int(digits.images.max()) <= 16
        assert digits.images.shape[1] == 3
