"""log p of images under every condition that is asked for, in noise that each image owns: computed once, in one place.

`class_scores` makes the only pass over a set of images. Bits under any label policy, posteriors, maps of patches, a
breakdown by class and a comparison with other sets are arithmetic on what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from tarflow.evaluation.likelihood.gaussian import GaussianYardstick
from tarflow.evaluation.likelihood.scoring import Conditions, LabelPolicy, Scoring
from tarflow.fields import integer
from tarflow.measure import Measure
from tarflow.model.checks import check_tensor
from tarflow.model.condition import Value
from tarflow.model.flow import TarFlow
from tarflow.ranks import ALONE, Ranks

Progress: TypeAlias = Callable[[int, int], None]
"""progress(done, total), in passes of an image through the flow: images times draws, and times classes where an image
goes through it once a class."""

BATCH_TOKENS = 1 << 14  # patches encoded at once where the batch size is ours to choose: 64 images of 256
CPU_TOKENS = 1 << 11  # at most of them at once on a CPU: more take up to 1.4 times as long, being beyond its caches


@dataclass(frozen=True)
class ClassScores:
    """log p of every draw of every image under every condition that it was scored under.

    Attributes:
        scoring: with the policy that was chosen. conditions: what the columns are.
        dims: T·D, the numbers in an image.
        log_prob: (draws, N, K), nats, float64 on the CPU.
        maps: (N, rows, columns), what each patch adds to the mean of `scores` over the draws, nats, float64; None where
            they were not asked for.
        yardstick: log-density of the Gaussian at the same noisy images, (draws, N); None where there is none.
    """

    scoring: Scoring
    conditions: Conditions
    dims: int
    log_prob: Tensor = field(repr=False)
    maps: Tensor | None = field(repr=False)
    yardstick: Tensor | None = field(repr=False)

    @property
    def scores(self) -> Tensor:
        """log p under the policy, (draws, N), nats."""
        return self.conditions.score(self.log_prob)

    @property
    def mean(self) -> Tensor:
        """The score of each image, the mean over draws, (N,) nats."""
        return self.scores.mean(dim=0)

    @property
    def bits(self) -> Tensor:
        """`scores` as bits a dimension in the measure, (draws, N)."""
        return self.scoring.measure.bits_per_dim(self.scores, self.dims)

    def under(self, labels: LabelPolicy | int | None, flow: TarFlow) -> ClassScores | None:
        """The same under no label of its own, "marginal" or "none", or "null"; None where that was not computed."""
        scoring = replace(self.scoring, labels=labels).resolved(flow)
        if scoring == self.scoring:
            return self
        if scoring.labels != "marginal" or not self.conditions.classes:
            return None
        classes = self.conditions.classes
        values = self.conditions.condition.sweep().repeat(self.log_prob.shape[1])
        conditions = replace(self.conditions, values=values, width=classes, own=None)
        return ClassScores(scoring, conditions, self.dims, self.log_prob[..., :classes], None, self.yardstick)


def class_scores(
    flow: TarFlow,
    images: Tensor,
    labels: Value = None,
    *,
    scoring: Scoring,
    all_classes: bool = False,
    maps: bool = False,
    yardstick: GaussianYardstick | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> ClassScores:
    """Score images once: each draw of each goes through the flow once for each of the conditions that are needed.

    Memory is that of a batch, and of what comes back: 8 bytes a pass.

    Args:
        flow: the model; it is left as it was found.
        images: (N, C, H, W) uint8. labels: (N,) integers, or the values of another condition.
        all_classes: score under each class besides what the policy needs, for posteriors.
        maps: keep what each patch adds.
        yardstick: scores the same noisy images.
        indices: the numbers k by which the noise of each image is drawn, where they are some of a larger set.
        batch_size: images scored at once, which changes no more than the rounding; None takes what suits the size.
        ranks: processes that call this together with the same arguments: each scores its share of the images, and all
            get the result for all of them. `progress` is that of the share.

    Raises:
        ValueError: images, labels or a policy that do not fit the model or each other.
    """
    _check_pixels(images, scoring.measure.levels)
    count, draws = len(images), scoring.draws
    scoring = scoring.resolved(flow, labels)
    conditions = Conditions.of(flow, labels, scoring.labels, count, all_classes=all_classes)
    numbers = range(count) if indices is None else indices
    if len(numbers) != count:
        raise ValueError(f"indices: expected {count}, one an image, got {len(numbers)}")
    width = conditions.width
    step = default_batch_size(flow) if batch_size is None else integer("batch_size", batch_size, 1)
    log_prob = torch.zeros(draws, count, width, device="cpu", dtype=torch.float64)
    by_patch = torch.zeros(count if maps else 0, flow.config.num_patches, device="cpu", dtype=torch.float64)
    gaussian = torch.zeros(draws if yardstick else 0, count, device="cpu", dtype=torch.float64)
    share = ranks.share(count)
    for start in range(share.start, share.stop, step):
        rows = slice(start, min(start + step, share.stop))
        known = conditions.rows(rows)
        for draw in range(draws):
            x = scoring.noisy(images[rows], draw, numbers[rows])
            done = ((start - share.start) * draws + draw * len(x)) * width
            told = beyond(progress, done, (share.stop - share.start) * draws * width)
            found = under_conditions(flow, x, known, by_token=maps, batch_size=step, progress=told)
            if maps:
                by_patch[rows] += known.map(found).cpu().double() / draws
                found = found.sum(dim=2)
            log_prob[draw, rows] = found.cpu().double()
            if yardstick:
                gaussian[draw, rows] = yardstick.log_prob(x)
    log_prob, by_patch, gaussian = ranks.sum([log_prob, by_patch, gaussian], host=True)
    grid = by_patch.unflatten(1, flow.config.grid) if maps else None
    return ClassScores(scoring, conditions, flow.config.num_dims, log_prob, grid, gaussian if yardstick else None)


def under_conditions(
    flow: TarFlow,
    x: Tensor,
    conditions: Conditions,
    *,
    by_token: bool = False,
    batch_size: int,
    progress: Progress | None = None,
) -> Tensor:
    """log p of images x (N, C, H, W) under each of their conditions, (N, K), or what each token adds to it, (N, K, T).

    On the model's device, in float32 at least, without gradients. Pairs of image and condition go through the flow
    `batch_size` at a time at most, so that few images under many classes take a few full passes and not K thin ones:
    one image under 100 classes takes a twentieth of the time on an H200, and half of it on a CPU. Nothing is shared
    between the classes of an image: a class is added to every token before the first layer, and what comes before it,
    one product of D by W a token, is a ten-thousandth of the work.
    """
    width, device = conditions.width, flow.device
    total, parts = len(x) * width, []
    if device.type == "cpu":
        batch_size = min(batch_size, max(1, CPU_TOKENS // flow.config.num_patches))
    # Autocast would lower the products: a score is in the precision of the weights.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for start in range(0, total, batch_size):
            stop = min(start + batch_size, total)
            first = start // width
            images = x[first : (stop - 1) // width + 1].to(device)
            if width > 1:
                pairs = torch.arange(start, stop, dtype=torch.int64, device="cpu")
                images = images[(pairs // width - first).to(device)]
            # Labels are checked on the CPU, where they are: no wait for the device.
            found = flow.log_prob_by_token(images, conditions.pairs(slice(start, stop)))
            parts.append(found if by_token else found.sum(dim=1))
            if progress:
                progress(stop, total)
    empty = torch.empty(
        (0, flow.config.num_patches)[: 1 + by_token],
        device=device,
        dtype=torch.promote_types(flow.dtype, torch.float32),
    )
    return (torch.cat(parts) if parts else empty).unflatten(0, (len(x), width))


def log_likelihood(
    flow: TarFlow,
    x: Tensor,
    y: Value = None,
    *,
    labels: LabelPolicy | int | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """log p of images x (N, C, H, W) as the model sees them, floating, under a policy of `Scoring`: (N,) nats.

    On the model's device, in float32 at least. Raises ValueError as `Conditions.of`.
    """
    conditions = _conditions(flow, x, y, labels)
    size = default_batch_size(flow) if batch_size is None else integer("batch_size", batch_size, 1)
    return conditions.score(under_conditions(flow, x, conditions, batch_size=size))


def patch_log_likelihood(
    flow: TarFlow, x: Tensor, y: Value = None, *, labels: LabelPolicy | int | None = None
) -> Tensor:
    """`log_likelihood` taken apart into what each patch adds to it, (N, rows, columns) nats; see `Conditions.map`."""
    conditions = _conditions(flow, x, y, labels)
    size = max(len(x), default_batch_size(flow))
    tokens = under_conditions(flow, x, conditions, by_token=True, batch_size=size)
    return conditions.map(tokens).unflatten(1, flow.config.grid)


def beyond(progress: Progress | None, done: int, total: int) -> Progress | None:
    """A progress of a part of the work, that tells `progress` what is done of the whole; `done` was done before."""
    return None if progress is None else lambda passes, _: progress(done + passes, total)


def default_batch_size(flow: TarFlow) -> int:
    """How many images make up `BATCH_TOKENS` patches, at least 1."""
    return max(1, BATCH_TOKENS // flow.config.num_patches)


def _conditions(flow: TarFlow, x: Tensor, y: Value, labels: LabelPolicy | int | None) -> Conditions:
    flow.event.check(x)
    chosen = Scoring(Measure(), labels=labels).resolved(flow, y).labels
    return Conditions.of(flow, y, chosen, len(x))


def _check_pixels(images: Tensor, levels: int) -> None:
    check_tensor("images", images, "(N, C, H, W) uint8")
    if images.ndim != 4 or images.dtype != torch.uint8 or len(images) == 0:
        got = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images: expected at least one, (N, C, H, W) uint8, got {got}")
    if int(images.max()) >= levels:
        raise ValueError(f"images: expected levels 0 to {levels - 1}, got {int(images.max())}")
