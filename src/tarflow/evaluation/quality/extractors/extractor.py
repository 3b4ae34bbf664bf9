"""A network with everything that its features depend on, and the two ways in which images are stretched for one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tarflow.measure import check_levels

FLOAT32: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
"""Where our networks are made, and of which numbers, whatever defaults the caller has set."""

BATCH_SIZE = 64  # images that go through a network at once: 40 MB of pixels at 224x224


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
        figure_names: of figures that have a name of their own on this network, by their kind.
    """

    name: str
    description: str
    digest: str
    dims: int
    network: nn.Module
    prepare: Callable[[Tensor, int], Tensor]
    figure_names: Mapping[str, str] = field(default_factory=dict)

    def figure(self, kind: str) -> str:
        """The name of a figure on these features: of kind "FD" it is "FD-EffNetLite0", or FID of Inception alone."""
        return self.figure_names.get(kind, f"{kind}-{self.name}")

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


def file_digest(path: Path, description: str) -> str:
    """Of the weights in a file and of how images are prepared for them."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(description.encode())
    return digest.hexdigest()[:32]


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
