"""From images to the features that distances are measured in: extractors, and how images are prepared for them.

A distance is worth nothing without the name of its extractor. `Extractor.figure` makes the names: "FD-EffNetLite0" is
a Fréchet distance and no FID, which is the one of Inception alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tarflow.measure import check_levels

ExtractorName: TypeAlias = Literal["efficientnet", "inception", "classifier"]
FLOAT32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
"""Where our networks are made, and of which numbers, whatever defaults the caller has set."""

BATCH_SIZE = 64  # images that go through a network at once: 40 MB of pixels at 224x224
INCEPTION = "Inception"


@dataclass(frozen=True)
class Extractor:
    """A network that turns images into features, and everything that its features depend on.

    Attributes:
        name: as it stands in the names of figures, such as "EffNetLite0".
        description: the network and how images are prepared, in words.
        digest: of the weights and of the preparation; what is cached goes by it.
        dims: d, the length of a feature.
        network: images as `prepare` leaves them to (N, d).
        prepare: (N, C, H, W) uint8 and the number of levels, to what the network takes.
    """

    name: str
    description: str
    digest: str
    dims: int
    network: nn.Module
    prepare: Callable[[Tensor, int], Tensor]

    def figure(self, kind: Literal["FD", "KD", "precision", "recall", "density", "coverage"]) -> str:
        """The name of a figure on these features: "FD-EffNetLite0"; of Inception "FID" and "KID"."""
        if self.name == INCEPTION and kind in ("FD", "KD"):
            return {"FD": "FID", "KD": "KID"}[kind]
        return f"{kind}-{self.name}"

    def features(self, pixels: Tensor, levels: int, progress: Callable[[int, int], None] | None = None) -> Tensor:
        """The features of images (N, C, H, W) uint8 of so many levels: (N, d) float32 on the CPU.

        An image's feature does not depend on the others: networks are in evaluation mode, and autocast is off.
        `progress` gets (images done, of how many).
        """
        check_levels(levels)
        if pixels.ndim != 4 or pixels.dtype != torch.uint8 or pixels.shape[1] not in (1, 3) or len(pixels) == 0:
            got = f"{tuple(pixels.shape)} {pixels.dtype}"
            raise ValueError(f"images: expected at least one, (N, 1 or 3, H, W) uint8, got {got}")
        device = next(self.network.parameters()).device
        parts = []
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for start in range(0, len(pixels), BATCH_SIZE):
                batch = pixels[start : start + BATCH_SIZE].to(device)
                parts.append(self.network(self.prepare(batch, levels)).float().cpu())
                if progress is not None:
                    progress(min(start + BATCH_SIZE, len(pixels)), len(pixels))
        return torch.cat(parts)


def open_extractor(
    name: ExtractorName,
    device: torch.device | str = "cpu",
    *,
    weights: str | Path | None = None,
    labelled: tuple[Tensor, Tensor, int] | None = None,
    cache: Path | None = None,
) -> Extractor:
    """The extractor that goes by this name on the command line.

    Args:
        name: "efficientnet", from the extra `[metrics]`; "inception", from a file of weights; "classifier", trained on
            the spot on the labelled images.
        weights: the file for "inception", and for it alone.
        labelled: training images (N, C, H, W) uint8, labels (N,) and the number of levels, for "classifier".
        cache: where "classifier" keeps what it has trained; None keeps nothing.

    Raises:
        ValueError: an unknown name, weights that are missing, not wanted or of something else, no labels.
        FileNotFoundError: no such file of weights.
    """
    if weights is not None and name != "inception":
        raise ValueError(f"weights: only extractor 'inception' takes a file of them, got extractor {name!r}")
    if name == "efficientnet":
        from tarflow.evaluation.quality.extractors.efficientnet import efficientnet_lite0

        return efficientnet_lite0(device)
    if name == "inception":
        from tarflow.evaluation.quality.extractors.inception import open_inception

        if weights is None:
            raise ValueError(
                "extractor 'inception': expected the path of a file with its weights (--weights), got none"
            )
        return open_inception(weights, device)
    if name == "classifier":
        from tarflow.evaluation.quality.extractors.small_network import open_classifier

        if labelled is None:
            raise ValueError(
                "extractor 'classifier': expected labelled training images to train it on; without labels choose "
                "'efficientnet' or 'inception'"
            )
        return open_classifier(*labelled, device=device, cache=cache)
    raise ValueError(f"extractor: expected 'efficientnet', 'inception' or 'classifier', got {name!r}")


def unit_pixels(pixels: Tensor, levels: int) -> Tensor:
    """`k/(L-1)` in 0 … 1, float32: (N, C, H, W) uint8 to (N, 3, H, W), grey repeated for each colour."""
    return (pixels.float() / (levels - 1)).expand(-1, 3, -1, -1)


def resized(images: Tensor, size: int, mode: Literal["bicubic", "bilinear"]) -> Tensor:
    """Images (N, C, H, W) in 0 … 1 stretched to `size` x `size`, and kept in 0 … 1. Nothing is cropped.

    "bicubic" widens its filter where it shrinks (antialiased), and is Pillow's. "bilinear" never does, which loses
    detail in large images, and is what published FIDs were computed with.
    """
    if images.shape[-2:] == (size, size):
        return images
    antialias = mode == "bicubic"
    return F.interpolate(images, (size, size), mode=mode, align_corners=False, antialias=antialias).clamp(0, 1)
