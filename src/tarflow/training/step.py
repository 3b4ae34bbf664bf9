"""One optimizer step: its batch, its objective, its gradient in micro-batches, and what moves where it counts.

The batch is a pure function of the seed and the step. The host waits for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeAlias

import torch
from torch import Tensor

from tarflow.config import TrainingConfig
from tarflow.measure import Measure
from tarflow.model.condition import Condition, Value
from tarflow.model.events import only
from tarflow.ranks import ALONE, Ranks
from tarflow.seeding import seeded_generator
from tarflow.training.ema import EMA
from tarflow.training.sharding import Flow, is_sharded, local


def objective(z: Tensor, ladj: Tensor) -> Tensor:
    """½ mean(z²) - mean(Σ_i ladj_i)/(T·D), nats a dimension: -log p / (T·D) without its constant ½ log 2π.

    For the additive transform ladj is 0, and ½ mean(z²) is the paper's volume-preserving objective.
    """
    return 0.5 * z.square().mean() - ladj.sum() / z.numel()


def training_batch(
    pixels: Tensor,
    labels: Value,
    step: int,
    *,
    config: TrainingConfig,
    measure: Measure,
    condition: Condition,
    flip: bool,
    crop_padding: int = 0,
    size: tuple[int, int] | None = None,
    rows: slice | None = None,
) -> tuple[Tensor, Value]:
    """What the model sees of the images of one step: mirrored, cropped, with noise, with labels dropped.

    Everything random is drawn from (seed, step), so a resumed run sees what the uninterrupted one would have seen, and
    for the whole batch, so an image sees the same however many processes share it.

    Args:
        pixels: (B, C, H, W) uint8, those of the step (`data.feed`). labels: (B,) int64, or values of another
            condition; None for an unconditional model.
        step: 0, 1, 2, …
        condition: that of the flow, which says what a dropped label is.
        flip, crop_padding: as in `DataConfig`; see `crops`.
        size: height and width of what the model sees, random windows of larger pixels; None: those of the pixels.
        rows: which of the `config.batch_size` rows of the batch these are; None where they are all of it.

    Returns:
        x (B, C, H, W) float32 with noise, y with dropped labels as null.
    """
    device = pixels.device
    count, rows = (len(pixels), slice(None)) if rows is None else (config.batch_size, rows)
    generator = seeded_generator(config.seed, "training", step, device=device)
    if flip:
        mirrored = torch.rand(count, generator=generator, device=device, dtype=torch.float32)[rows] < 0.5
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    size = size or (pixels.shape[2], pixels.shape[3])
    places = [have - want + 2 * crop_padding + 1 for have, want in zip(pixels.shape[2:], size, strict=True)]
    if places != [1, 1]:
        # One range for both axes, of which the remainders are even.
        drawn = torch.randint(math.lcm(*places), (count, 2), generator=generator, device=device, dtype=torch.int64)
        moved = torch.stack([drawn[rows, axis] % places[axis] for axis in (0, 1)], dim=1)
        pixels = crops(pixels, moved - crop_padding, size)
    x = measure.noisy(pixels, generator, rows, count)
    if labels is None:
        return x, None
    chance = torch.rand(count, *condition.drops, generator=generator, device=device, dtype=torch.float32)[rows]
    return x, condition.drop(labels, chance < config.label_drop)


def crops(pixels: Tensor, moved: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Windows (B, C, h, w) of a size, by default that of the images, whose corner is `moved` (B, 2) down and right.

    Images (B, C, H, W) are continued by reflection. The pixel at the border is not repeated, so that what lies beyond
    is less than H and W.

    >>> row = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4)
    >>> crops(row, torch.tensor([[0, -2]])).flatten().tolist()
    [2, 1, 0, 1]
    >>> crops(row, torch.tensor([[0, 1]]), (1, 2)).flatten().tolist()
    [1, 2]
    """
    for axis, by in ((2, moved[:, :1]), (3, moved[:, 1:])):
        last = pixels.shape[axis] - 1
        side = last + 1 if size is None else size[axis - 2]
        at = (torch.arange(side, device=pixels.device, dtype=torch.int64) + by).abs()  # (B, side)
        at = last - (last - at).abs()
        taken = list(pixels.shape)
        taken[axis] = side
        shape = (-1, 1, side, 1) if axis == 2 else (-1, 1, 1, side)
        pixels = pixels.gather(axis, at.view(shape).expand(taken))
    return pixels


Forward: TypeAlias = Callable[..., tuple[Tensor, Tensor]]


class TrainingStep(Generic[Flow]):
    """A flow, its optimizer and its averaged weights, moved by one batch at a time.

    A step whose loss or gradient is not finite is skipped: weights, moments, the optimizer's step count, averaged
    weights and base variance stay as they were. The device decides that: asking the host would make both wait for each
    other in every step. The fused optimizer takes the decision as `found_inf`, as from a gradient scaler, and the
    counters are tensors.

    Args:
        flow, optimizer, ema: what moves; the optimizer is that of `build_optimizer`; None averages no weights.
        config: `accumulate` and `clip_norm` are read.
        forward: `flow` itself, or what wraps it (autocast, compilation): (x, y), and a mask if there is one, to z and
            ladj by token.
        micro_batch: a context for each micro-batch, told whether it is the last of the step, after which the gradients
            must be those of all ranks.
        ranks: the processes that share each batch in equal parts.
    """

    def __init__(
        self,
        flow: Flow,
        optimizer: torch.optim.Optimizer,
        ema: EMA[Flow] | None,
        *,
        config: TrainingConfig,
        forward: Forward | None = None,
        micro_batch: Callable[[bool], AbstractContextManager[Any]] = nullcontext,
        ranks: Ranks = ALONE,
    ) -> None:
        self.flow, self.optimizer, self.ema, self.config = flow, optimizer, ema, config
        self.forward: Forward = forward or flow
        self.micro_batch, self.ranks = micro_batch, ranks
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.sharded = any(map(is_sharded, self.parameters))
        # The fused kernels of the CPU and of CUDA know `found_inf`; elsewhere the host has to ask.
        self.decided_on_device = flow.device.type in ("cpu", "cuda")
        self.set_counts(0, 0)

    def set_counts(self, skipped: int, skipped_in_a_row: int) -> None:
        """Where a resumed run stands."""
        counts = torch.tensor([skipped, skipped_in_a_row, skipped_in_a_row], device=self.flow.device, dtype=torch.int64)
        self.skipped, self.skipped_in_a_row, self.longest_row = counts.unbind()

    def __call__(self, x: Tensor, y: Value, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step, at the optimizer's learning rate.

        Args:
            x: (B, …), this rank's events, such as noisy images (B, C, H, W); `accumulate` divides B. y: values of the
                condition, such as labels (B,). mask: (B, T), which tokens of sequences are there.

        Returns:
            0-d tensors on the device: `loss` (`objective` of the batch), `log_prob` (its mean, nats), both before the
            step, and `grad_norm`, before clipping. They are those of the batch of all ranks.
        """
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.config.accumulate
        loss = log_prob = x.new_zeros((), dtype=torch.float32)
        energy: Tensor | None = None  # mean z² of the batch (T, D), which the base follows, if it does
        ys = self.flow.conditions.chunk(y, parts)
        there = [None] * parts if mask is None else mask.chunk(parts)
        for number, (x_part, y_part, mask_part) in enumerate(zip(x.chunk(parts), ys, there, strict=True), 1):
            with self.micro_batch(number == parts):
                z, ladj = self.forward(x_part, y_part, *(() if mask_part is None else (mask_part,)))
                part = objective(z, ladj) / parts  # equal parts: the mean of their means is that of the batch
                part.backward()
            with torch.no_grad():
                loss = loss + part.detach()
                log_prob = log_prob + only(mask_part, self.flow.base.log_prob(z) + ladj).sum(dim=1).mean() / parts
                if self.flow.base.follows:
                    share = z.detach().square().mean(dim=0) / parts
                    energy = share if energy is None else energy + share
            del z, ladj, part  # before the next part allocates its own: otherwise both are in memory
        gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not self.ranks.alone:
            loss, log_prob, energy, norm = self._of_all_ranks(loss, log_prob, energy, norm)
        if self.config.clip_norm is not None:
            torch._foreach_mul_(gradients, (self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        finite = torch.isfinite(norm) & torch.isfinite(loss)
        self._move(finite)
        if self.ema is not None:
            self.ema.update(finite)
        if energy is not None:
            self.flow.base.update(energy, finite)
        with torch.no_grad():
            self.skipped = self.skipped + ~finite
            self.skipped_in_a_row = torch.where(finite, 0, self.skipped_in_a_row + 1)
            self.longest_row = torch.maximum(self.longest_row, self.skipped_in_a_row)
        return {"loss": loss, "log_prob": log_prob, "grad_norm": norm}

    def _of_all_ranks(
        self, loss: Tensor, log_prob: Tensor, energy: Tensor | None, norm: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Means over the batch of all ranks, and the norm of the whole gradient: the same bits on every rank.

        What is decided by them is then decided alike. The gradient is averaged already; where it is sharded, the
        squares of the parts' norms add up to that of the whole, in float64, where they do not overflow.
        """
        means = [loss, log_prob] if energy is None else [loss, log_prob, energy]
        *sums, square = self.ranks.sum([*means, norm.double().square()])
        means = [value / self.ranks.size for value in sums]
        norm = square.sqrt().to(norm.dtype) if self.sharded else norm
        return means[0], means[1], None if energy is None else means[2], norm

    def _move(self, finite: Tensor) -> None:
        """The optimizer's step, unless its gradient is not `finite`."""
        if self.decided_on_device:
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(finite):
            self.optimizer.step()
