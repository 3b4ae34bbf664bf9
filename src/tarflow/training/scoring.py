"""The held-out score of a run on its way, and what the additive variant still lacks when it ends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tarflow.config import RunConfig
from tarflow.data.sets import ImageSet
from tarflow.evaluation.likelihood.evaluate import Likelihood, evaluate_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.model.flow import TarFlow
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.ranks import ALONE, Ranks


def score_held_out(flow: TarFlow, held_out: ImageSet, config: RunConfig, ranks: Ranks) -> Likelihood:
    """The likelihood of held-out images in one draw of noise, the same one every time; all ranks get it."""
    return evaluate_likelihood(
        flow,
        held_out.images,
        held_out.labels if config.model.num_classes else None,
        scoring=Scoring(config.measure, draws=1),
        ranks=ranks,
    )


def one_pass(images: int, batch_size: int, after: int) -> range:
    """Steps not before `after` whose batches hold all images once, but for what fills the last one up."""
    start = images * math.ceil(after / images)  # times any batch size the beginning of an epoch
    return range(start, start + math.ceil(images / batch_size))


def settle(
    out: Path,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    device: torch.device,
    parts: int = 1,
    ranks: Ranks = ALONE,
) -> TarFlow:
    """The best weights of an additive run, with their base variance measured over `batches`, and written back.

    In training it follows a few batches, so that it is off by what those differ from all images. All ranks must call
    it. A second time it comes to the same: z does not depend on it.
    """
    flow = TarFlow.from_pretrained(out, device=device)
    measure_base_variance(flow, batches, parts, ranks)
    ranks.on_first(lambda: flow.save_weights(out / WEIGHTS_FILE))
    return flow


@torch.no_grad()
def measure_base_variance(
    flow: TarFlow, batches: Iterable[tuple[Tensor, Tensor | None]], parts: int = 1, ranks: Ranks = ALONE
) -> None:
    """Set the followed `base.variance` to mean(z²) (T, D) over batches of equal size: its maximum likelihood.

    Args:
        batches: of noisy images and labels, this rank's rows of them. parts: that each goes through the flow in.
    """
    assert flow.base.follows
    total, count = torch.zeros_like(flow.base.variance, device="cpu", dtype=torch.float64), 0
    for x, y in batches:
        ys = [None] * parts if y is None else y.chunk(parts)
        for x_part, y_part in zip(x.chunk(parts), ys, strict=True):
            total += flow(x_part, y_part)[0].square().mean(dim=0).cpu()
            count += 1
    (total,) = ranks.sum([total / count], host=True)
    flow.base.variance.copy_(total / ranks.size)
