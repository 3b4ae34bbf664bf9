"""The 8x8 handwritten digits that scikit-learn carries: 1,797 grey images of 17 levels, 10 classes."""

from __future__ import annotations

from tarflow.data.records import Part, Source


def open_digits() -> Source:
    """Images (1, 8, 8) named `digits:0` to `digits:1796`, with the classes `0` to `9`; no split of their own."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype("uint8")[:, None]  # (N, 1, 8, 8), whole numbers 0..16
    names = [f"digits:{i}" for i in range(len(images))]
    part = Part("all", names, digits.target.tolist(), lambda: iter(images))
    return Source((part,), tuple(str(i) for i in range(10)), levels=17)
