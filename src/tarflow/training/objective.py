"""The training objective, and the batch of one step as a pure function of the seed and the step."""

from __future__ import annotations

import torch
from torch import Tensor

from tarflow.config import TrainingConfig
from tarflow.measure import Measure
from tarflow.model.block import NULL_CLASS
from tarflow.model.flow import TarFlow
from tarflow.seeding import seeded_generator

VARIANCE_RATE = 0.1  # weight of a step's mean(z²) in the additive variant's base variance; the paper's


def objective(z: Tensor, ladj: Tensor) -> Tensor:
    """½ mean(z²) - mean(ladj)/(T·D), nats a dimension: -log p / (T·D) without its constant ½ log 2π.

    For the additive transform ladj is 0, and ½ mean(z²) is the paper's volume-preserving objective.
    """
    return 0.5 * z.square().mean() - ladj.mean() / z[0].numel()


def training_batch(
    pixels: Tensor,
    labels: Tensor | None,
    step: int,
    *,
    config: TrainingConfig,
    measure: Measure,
    flip: bool,
    rows: slice | None = None,
) -> tuple[Tensor, Tensor | None]:
    """What the model sees of the images of one step: mirrored, with noise, with labels dropped.

    Everything random is drawn from (seed, step), so a resumed run sees what the uninterrupted one would have seen, and
    for the whole batch, so an image sees the same however many processes share it.

    Args:
        pixels: (B, C, H, W) uint8, those of the step (`data.feed`). labels: (B,) int64, or None for an unconditional
            model.
        step: 0, 1, 2, …
        rows: which of the `config.batch_size` rows of the batch these are; None where they are all of it.

    Returns:
        x (B, C, H, W) float32 with noise, y (B,) int64 with dropped labels as the null class.
    """
    device = pixels.device
    count, rows = (len(pixels), slice(None)) if rows is None else (config.batch_size, rows)
    generator = seeded_generator(config.seed, "training", step, device=device)
    if flip:
        mirrored = torch.rand(count, generator=generator, device=device, dtype=torch.float32)[rows] < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    x = measure.noisy(pixels, generator, rows, count)
    if labels is None:
        return x, None
    dropped = torch.rand(count, generator=generator, device=device, dtype=torch.float32)[rows] < config.label_drop
    return x, torch.where(dropped, NULL_CLASS, labels)


@torch.no_grad()
def update_base_variance(flow: TarFlow, energy: Tensor, moved: Tensor | bool = True) -> None:
    """Move the additive variant's `base_variance` (T, D) towards `energy`, mean(z²) of this step's batch (T, D).

    Where the step does not count (`moved`, 0-d bool, is false) nothing changes. Affine flows have no base variance.
    """
    if flow.base_variance is not None:
        step = VARIANCE_RATE * (energy.to(flow.base_variance.dtype) - flow.base_variance)
        flow.base_variance += torch.where(torch.as_tensor(moved, device=step.device, dtype=torch.bool), step, 0.0)
