"""The 8x8 handwritten digits that scikit-learn carries: 1,797 grey images of 17 levels, 10 classes."""

from __future__ import annotations

from tarflow.data.options import LoadOptions
from tarflow.data.records import Records, Source

NAME = "digits"


def claims(source: str) -> bool:
    """The name itself."""
    return source == NAME


def open_digits(source: str = NAME, options: LoadOptions | None = None) -> Source:
    """Images (1, 8, 8) named `digits:0` to `digits:1796`, with the classes `0` to `9`; no split of their own."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype("uint8")[:, None]  # (N, 1, 8, 8), whole numbers 0..16
    names = [f"digits:{i}" for i in range(len(images))]
    part = Records("all", names, digits.target.tolist(), lambda rows: map(images.__getitem__, rows))
    return Source((part,), tuple(str(i) for i in range(10)), levels=17)
