"""The pictures of `tarflow score --maps`: an image beside what each of its patches adds to its log-likelihood."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tarflow.evaluation.likelihood.held_out import Scoring, score_options
from tarflow.evaluation.likelihood.patch_maps import heat_map, mean_patch_maps
from tarflow.measure import to_8bit
from tarflow.pictures import save_sheet

if TYPE_CHECKING:
    from tarflow.checkpoint import Run


def draw_maps(run: Run, pixels: Any, numbers: list[int], scoring: Scoring, maps: Path, total: int) -> None:
    """One picture an image: itself, and its map over it."""
    options = score_options(run, len(pixels), scoring)
    patches = mean_patch_maps(run.flow, pixels, **options, indices=numbers, batch_size=len(pixels))
    for number, values, image in zip(numbers, patches, to_8bit(pixels, run.levels), strict=True):
        if bool(values.isfinite().any()):
            pair = torch.stack([image.expand(3, -1, -1), heat_map(values, image)])
            save_sheet(maps / map_name(number, total), pair, columns=2, zoom=max(1, 128 // image.shape[-2]))


def map_name(number: int, total: int) -> str:
    """The name of the picture of image `number` of `total`."""
    return f"{number:0{len(str(total - 1))}d}.png"
