"""Networks that turn images into features; a new one is a file here, with a function `open_extractor`, and a line.

Features are worth nothing without the name of their network, which stands in the name of every figure made of them.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from tarflow.data.sets import ImageSet
    from tarflow.evaluation.quality.extractors.extractor import Extractor

# Name on the command line: (module of this folder, what it is opened with besides the device).
EXTRACTORS: dict[str, tuple[str, Literal["nothing", "weights", "images"]]] = {
    "efficientnet": ("efficientnet", "nothing"),
    "inception": ("inception", "weights"),
    "classifier": ("small_network", "images"),
}


def needs_images(name: str) -> bool:
    """Whether an extractor is trained on the labelled images of the run, and can be opened only after they are."""
    return name in EXTRACTORS and EXTRACTORS[name][1] == "images"


def open_extractor(
    name: str,
    device: torch.device | str = "cpu",
    *,
    weights: str | Path | None = None,
    images: ImageSet | None = None,
    cache: Path | None = None,
) -> Extractor:
    """The extractor that goes by this name on the command line.

    Args:
        name: "efficientnet", from the extra `[metrics]`; "inception", from a file of weights; "classifier", trained on
            the spot on labelled images.
        weights: the file for "inception", and for it alone.
        images: training images with their labels, for "classifier".
        cache: where "classifier" keeps what it has trained; None keeps nothing.

    Raises:
        ValueError: an unknown name, weights that are missing, not wanted or of something else, no labels.
        FileNotFoundError: no such file of weights.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"extractor: expected one of {', '.join(map(repr, EXTRACTORS))}, got {name!r}")
    module, needed = EXTRACTORS[name]
    opener = importlib.import_module(f"{__name__}.{module}").open_extractor
    if needed != "weights" and weights is not None:
        raise ValueError(f"weights: only extractor 'inception' takes a file of them, got extractor {name!r}")
    if needed == "weights" and weights is None:
        raise ValueError(f"extractor {name!r}: expected the path of a file with its weights (--weights), got none")
    if needed == "images" and (images is None or images.labels is None):
        raise ValueError(
            f"extractor {name!r}: expected labelled training images to train it on; without labels choose "
            "'efficientnet' or 'inception'"
        )
    if needed == "images":
        return opener(images, device, cache)
    return opener(weights, device) if needed == "weights" else opener(device)
