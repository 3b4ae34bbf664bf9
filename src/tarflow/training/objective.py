"""The training objective, and the batch of one step as a pure function of the seed and the step."""

from __future__ import annotations

import torch
from torch import Tensor

from tarflow.config import TrainingConfig
from tarflow.measure import Measure
from tarflow.model.condition import Condition
from tarflow.seeding import seeded_generator


def objective(z: Tensor, ladj: Tensor) -> Tensor:
    """½ mean(z²) - mean(Σ_i ladj_i)/(T·D), nats a dimension: -log p / (T·D) without its constant ½ log 2π.

    For the additive transform ladj is 0, and ½ mean(z²) is the paper's volume-preserving objective.
    """
    return 0.5 * z.square().mean() - ladj.sum() / z.numel()


def training_batch(
    pixels: Tensor,
    labels: Tensor | None,
    step: int,
    *,
    config: TrainingConfig,
    measure: Measure,
    condition: Condition,
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
        condition: that of the flow, which says what a dropped label is.
        rows: which of the `config.batch_size` rows of the batch these are; None where they are all of it.

    Returns:
        x (B, C, H, W) float32 with noise, y (B,) int64 with dropped labels as null.
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
    return x, condition.drop(labels, dropped)
