"""log p of every image: under a named label policy, in batches, for draws of noise that each image owns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tarflow.data.noise import Noise, check_noise, noisy_images
from tarflow.data.pixels import check_levels
from tarflow.evaluation.gaussian import GaussianYardstick
from tarflow.fields import integer
from tarflow.model.block import NULL_CLASS
from tarflow.model.checks import check_tensor
from tarflow.model.flow import TarFlow
from tarflow.ranks import Ranks
from tarflow.seeding import seeded_generator

LabelPolicy: TypeAlias = Literal["given", "null", "marginal", "none"]
Progress: TypeAlias = Callable[[int, int], None]
"""progress(done, total), in images times draws."""

BATCH_TOKENS = 1 << 14  # patches encoded at once where the batch size is ours to choose: 64 images of 256


def score_images(
    flow: TarFlow,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    levels: int,
    noise: Noise,
    noise_std: float = 0.0,
    draws: int = 4,
    seed: int = 0,
    batch_size: int | None = None,
    label_policy: LabelPolicy | None = None,
    yardstick: GaussianYardstick | None = None,
    progress: Progress | None = None,
    indices: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log p of every noisy draw of every image, and the yardstick's: (draws, N) each, nats, float64 on the CPU.

    Arguments and errors are those of `evaluate_likelihood`; besides, `indices` are the numbers k by which the noise of
    each image is drawn, where they are some of a larger set; None is 0 … N-1.
    """
    check_noise(noise, noise_std)
    check_levels(levels)
    _check_pixels(images, levels)
    draws = integer("draws", draws, 1)
    policy = label_policy or default_label_policy(flow, labels)
    check_policy(flow, labels, policy, len(images))
    batch_size = _checked_batch_size(flow, batch_size)
    numbers = range(len(images)) if indices is None else indices
    if len(numbers) != len(images):
        raise ValueError(f"indices: expected {len(images)}, one an image, got {len(numbers)}")
    scores = torch.empty(draws, len(images), device="cpu", dtype=torch.float64)
    yardstick_scores = torch.empty_like(scores) if yardstick else None
    for start in range(0, len(images), batch_size):
        rows = slice(start, min(start + batch_size, len(images)))
        pixels, y = images[rows], None if labels is None else labels[rows]
        for draw in range(draws):
            generators = [seeded_generator(seed, "evaluation", draw, k) for k in numbers[rows]]
            x = noisy_images(pixels, levels, noise, noise_std, generators)
            scores[draw, rows] = log_likelihood(flow, x, y, label_policy=policy, batch_size=batch_size).cpu().double()
            if yardstick and yardstick_scores is not None:
                yardstick_scores[draw, rows] = yardstick.log_prob(x)
            if progress:
                progress(rows.start * draws + (draw + 1) * len(pixels), len(images) * draws)
    return scores, yardstick_scores


def score_shares(
    ranks: Ranks, flow: TarFlow, images: Tensor, labels: Tensor | None, *, draws: int, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """`score_images` by several processes, each of which scores its share of the images; all get the scores of all.

    An image is scored once, with the noise that it has where one process scores all. A rank's share may be empty.
    """
    if ranks.alone:
        return score_images(flow, images, labels, draws=draws, **options)
    rows = ranks.share(len(images))
    count = 2 if options.get("yardstick") else 1
    shape = (count, draws, len(images))
    found = torch.zeros(shape, device="cpu", dtype=torch.float64)  # 0 where another rank has the score
    if rows.start < rows.stop:
        share = None if labels is None else labels[rows]
        numbers = range(len(images))[rows]
        parts = score_images(flow, images[rows], share, draws=draws, indices=numbers, **options)
        found[:, :, rows] = torch.stack([part for part in parts if part is not None])
    (found,) = ranks.sum([found], host=True)
    return found[0], found[1] if count == 2 else None


def log_likelihood(
    flow: TarFlow,
    x: Tensor,
    y: Tensor | None = None,
    *,
    label_policy: LabelPolicy | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """log p of images as the model sees them, nats, (N,), on the model's device, in float32 at least.

        given       log p(x|y), every row with a label of its own
        null        log p(x|∅), the null class, whatever y says
        marginal    log 1/K Σ_y p(x|y), all K classes alike, whatever y says; K times the work, no more memory
        none        log p(x), the only one of an unconditional model

    Args:
        x: (N, C, H, W), floating, on any device. Not written to.
        y: (N,) labels; used by "given" only.
        label_policy: None is the policy of `default_label_policy`.
        batch_size: images encoded at once; None takes what suits the size.

    Raises:
        ValueError: images or labels that do not fit; a policy that the model or the labels cannot honour.
    """
    policy = label_policy or default_label_policy(flow, y)
    flow.check_images(x)
    check_policy(flow, y, policy, len(x))
    batch_size = _checked_batch_size(flow, batch_size)
    parts = []
    # Autocast would lower the products: a score is in the precision of the weights.
    with torch.no_grad(), torch.autocast(flow.device.type, enabled=False):
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            batch = x[rows].to(flow.device)
            if policy == "given":
                assert y is not None
                parts.append(flow.log_prob(batch, y[rows]))
            elif policy == "marginal":
                parts.append(_marginal(flow, batch))
            else:
                parts.append(flow.log_prob(batch, None))
    dtype = torch.promote_types(flow.dtype, torch.float32)
    return torch.cat(parts) if parts else torch.empty(0, device=flow.device, dtype=dtype)


def default_label_policy(flow: TarFlow, y: Tensor | None) -> LabelPolicy:
    """ "none" for an unconditional model; else "given" where every image has a label, and "marginal" where not."""
    if not flow.config.num_classes:
        return "none"
    return "marginal" if y is None or bool((y == NULL_CLASS).any()) else "given"


def default_batch_size(flow: TarFlow) -> int:
    """How many images make up `BATCH_TOKENS` patches, at least 1."""
    return max(1, BATCH_TOKENS // flow.config.num_patches)


def _checked_batch_size(flow: TarFlow, batch_size: int | None) -> int:
    if batch_size is None:
        return default_batch_size(flow)
    return integer("batch_size", batch_size, 1)


def _marginal(flow: TarFlow, x: Tensor) -> Tensor:
    """log 1/K Σ_y p(x|y), class by class, (B,)."""
    classes = flow.config.num_classes
    total: Tensor | None = None
    for k in range(classes):
        score = flow.log_prob(x, torch.full((len(x),), k, dtype=torch.int64, device="cpu"))  # checked there: no wait
        total = score if total is None else torch.logaddexp(total, score)
    assert total is not None
    return total - math.log(classes)


def _check_pixels(images: Tensor, levels: int) -> None:
    check_tensor("images", images, "(N, C, H, W) uint8")
    if images.ndim != 4 or images.dtype != torch.uint8 or len(images) == 0:
        got = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images: expected at least one, (N, C, H, W) uint8, got {got}")
    if int(images.max()) >= levels:
        raise ValueError(f"images: expected levels 0 to {levels - 1}, got {int(images.max())}")


def check_policy(flow: TarFlow, y: Tensor | None, policy: str, count: int) -> None:
    """Raise ValueError where the policy is unknown, or is not one of this model, or lacks labels."""
    known = ("given", "null", "marginal") if flow.config.num_classes else ("none",)
    if policy not in known:
        kind = "a conditional" if flow.config.num_classes else "an unconditional"
        raise ValueError(f"label policy: expected {' or '.join(map(repr, known))} for {kind} model, got {policy!r}")
    if policy != "given":
        return
    if y is None:
        raise ValueError("label policy 'given': expected labels, got none; choose 'marginal' or 'null'")
    flow.check_labels(y, count)
    if bool((y == NULL_CLASS).any()):
        row = int((y == NULL_CLASS).nonzero()[0])
        raise ValueError(f"label policy 'given': image {row} has no label; choose 'marginal' or 'null'")
