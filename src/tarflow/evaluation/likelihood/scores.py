"""log p of every image: under a named label policy, in batches, for draws of noise that each image owns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.gaussian import GaussianYardstick
from tarflow.fields import integer
from tarflow.measure import Measure
from tarflow.model.checks import check_tensor
from tarflow.model.condition import NULL_CLASS
from tarflow.model.flow import TarFlow
from tarflow.ranks import Ranks
from tarflow.seeding import seeded_generator

LabelPolicy: TypeAlias = Literal["given", "null", "marginal", "none"]
Progress: TypeAlias = Callable[[int, int], None]
"""progress(done, total), in passes of an image through the flow: images times draws, and times classes where an image
goes through it once a class."""

BATCH_TOKENS = 1 << 14  # patches encoded at once where the batch size is ours to choose: 64 images of 256
CPU_TOKENS = 1 << 11  # at most of them at once on a CPU: more take up to 1.4 times as long, being beyond its caches


def score_images(
    flow: TarFlow,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    levels: int,
    noise: str,
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
    measure = Measure(levels, noise, noise_std)
    _check_pixels(images, levels)
    draws = integer("draws", draws, 1)
    policy = label_policy or default_label_policy(flow, labels)
    check_policy(flow, labels, policy, len(images))
    batch_size = _checked_batch_size(flow, batch_size)
    numbers = range(len(images)) if indices is None else indices
    if len(numbers) != len(images):
        raise ValueError(f"indices: expected {len(images)}, one an image, got {len(numbers)}")
    each = flow.config.num_classes if policy == "marginal" else 1
    scores = torch.empty(draws, len(images), device="cpu", dtype=torch.float64)
    yardstick_scores = torch.empty_like(scores) if yardstick else None
    for start in range(0, len(images), batch_size):
        rows = slice(start, min(start + batch_size, len(images)))
        pixels, y = images[rows], None if labels is None else labels[rows]
        for draw in range(draws):
            generators = [seeded_generator(seed, "evaluation", draw, k) for k in numbers[rows]]
            x = measure.noisy(pixels, generators)
            passed = beyond(progress, (rows.start * draws + draw * len(pixels)) * each, len(images) * draws * each)
            scored = log_likelihood(flow, x, y, label_policy=policy, batch_size=batch_size, progress=passed)
            scores[draw, rows] = scored.cpu().double()
            if yardstick and yardstick_scores is not None:
                yardstick_scores[draw, rows] = yardstick.log_prob(x)
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
    progress: Progress | None = None,
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
        progress: see `Progress`.

    Raises:
        ValueError: images or labels that do not fit; a policy that the model or the labels cannot honour.
    """
    policy = label_policy or default_label_policy(flow, y)
    flow.event.check(x)
    check_policy(flow, y, policy, len(x))
    batch_size = _checked_batch_size(flow, batch_size)
    if not len(x):
        return torch.empty(0, device=flow.device, dtype=torch.promote_types(flow.dtype, torch.float32))
    if policy == "marginal":
        scores = under_each_class(flow, flow.log_prob, x, batch_size=batch_size, progress=progress)
        return scores.logsumexp(dim=1) - math.log(flow.config.num_classes)
    batch_size, parts = _pass_size(flow, batch_size), []
    # Autocast would lower the products: a score is in the precision of the weights.
    with torch.no_grad(), torch.autocast(flow.device.type, enabled=False):
        for start in range(0, len(x), batch_size):
            rows = slice(start, start + batch_size)
            labels = y[rows] if policy == "given" and y is not None else None
            parts.append(flow.log_prob(x[rows].to(flow.device), labels))
            if progress:
                progress(min(rows.stop, len(x)), len(x))
    return torch.cat(parts)


def under_each_class(
    flow: TarFlow,
    compute: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> Tensor:
    """`compute(x, y)` of every image (N, C, H, W) under every class, (N, K, …), on the model's device, no gradients.

    Pairs of image and class go through the flow `batch_size` at a time at most, so that few images under many classes
    take a few full passes and not K thin ones: one image under 100 classes takes a twentieth of the time on an H200,
    and half of it on a CPU. Nothing is shared between the classes of an image: a class is added to every
    token before the first layer, and what comes before it, one product of D by W a token, is a ten-thousandth of the
    work (0.01 % of the products at patch 2, width 256 and 6 blocks of 6 layers).
    """
    classes, device = flow.config.num_classes, flow.device
    total = len(x) * classes
    batch_size = _pass_size(flow, batch_size)
    parts = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for start in range(0, total, batch_size):
            stop = min(start + batch_size, total)
            first = start // classes
            images = x[first : (stop - 1) // classes + 1].to(device)
            pairs = torch.arange(start, stop, dtype=torch.int64, device="cpu")  # labels are checked there: no wait
            parts.append(compute(images[(pairs // classes - first).to(device)], pairs % classes))
            if progress:
                progress(stop, total)
    return torch.cat(parts).unflatten(0, (len(x), classes))


def beyond(progress: Progress | None, done: int, total: int) -> Progress | None:
    """A progress of a part of the work, that tells `progress` what is done of the whole; `done` was done before."""
    return None if progress is None else lambda passes, _: progress(done + passes, total)


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


def _pass_size(flow: TarFlow, batch_size: int) -> int:
    """How many of a batch go through the flow at once."""
    if flow.device.type != "cpu":
        return batch_size
    return min(batch_size, max(1, CPU_TOKENS // flow.config.num_patches))


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
    flow.check_condition(y, count)
    if bool((y == NULL_CLASS).any()):
        row = int((y == NULL_CLASS).nonzero()[0])
        raise ValueError(f"label policy 'given': image {row} has no label; choose 'marginal' or 'null'")
