"""What a run shows of itself on its way: the held-out score, and sample sheets from the same noise every time.

And what the additive variant still lacks when it ends: its base variance, measured over all images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from tarflow.config import RunConfig
from tarflow.data.sets import ImageSet
from tarflow.evaluation.likelihood.evaluate import Likelihood, evaluate_likelihood
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.measure import to_8bit
from tarflow.model.condition import Value
from tarflow.model.flow import TarFlow
from tarflow.model.saving import WEIGHTS_FILE
from tarflow.model.sequence import SequenceFlow
from tarflow.pictures import class_captions, columns_by_class, save_sheet
from tarflow.ranks import ALONE, Ranks
from tarflow.sampling.sample import SamplingError, sample


def score_held_out(flow: TarFlow, held_out: ImageSet, config: RunConfig, ranks: Ranks) -> Likelihood:
    """The likelihood of held-out images in one draw of noise, the same one every time; all ranks get it."""
    return evaluate_likelihood(
        flow,
        held_out.images,
        held_out.values(config.model.conditioned_on),
        scoring=Scoring(config.measure, draws=1),
        ranks=ranks,
    )


def one_pass(images: int, batch_size: int, after: int) -> range:
    """Steps not before `after` whose batches hold all images once, but for what fills the last one up."""
    start = images * math.ceil(after / images)  # times any batch size the beginning of an epoch
    return range(start, start + math.ceil(images / batch_size))


def settle(
    out: Path,
    batches: Iterable[tuple[Tensor, Value]],
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
    flow: SequenceFlow, batches: Iterable[tuple[Tensor, Value]], parts: int = 1, ranks: Ranks = ALONE
) -> None:
    """Set the followed `base.variance` to mean(z²) (T, D) over batches of equal size: its maximum likelihood.

    Args:
        batches: of events, such as noisy images, and what they are given, this rank's rows of them. parts: that each
            goes through the flow in.
    """
    assert flow.base.follows
    total, count = torch.zeros_like(flow.base.variance, device="cpu", dtype=torch.float64), 0
    for x, y in batches:
        for x_part, y_part in zip(x.chunk(parts), flow.conditions.chunk(y, parts), strict=True):
            total += flow(x_part, y_part)[0].square().mean(dim=0).cpu()
            count += 1
    (total,) = ranks.sum([total / count], host=True)
    flow.base.variance.copy_(total / ranks.size)


SHEET_IMAGES = 100


def draw_sheet(
    flow: TarFlow,
    config: RunConfig,
    path: Path,
    ranks: Ranks,
    writing: Callable[[], AbstractContextManager[None]],
    given: Value = None,
) -> str:
    """Draw a sheet and write it to `path`, on rank 0; says where it is, or why there is none. All ranks must call it.

    Its images go through the classes, or, where these are not all that the flow is conditioned on, through values that
    are `given`.

    An image is drawn by one rank, from the noise that it has where there is one process. It is written in `writing`.
    """
    assert config.training is not None and config.data is not None
    classes, y = config.model.num_classes, None
    index = torch.arange(SHEET_IMAGES, device="cpu", dtype=torch.int64)
    if classes:
        y = index % classes
    elif (count := flow.conditions.count(given)) is not None:
        y = flow.conditions.rows(given, index % count)
    drawn = ranks.gather(_draw_share(flow, config, y, ranks.share(SHEET_IMAGES)))
    for part in drawn:
        if isinstance(part, str):  # weights on their way may overflow: no reason to end a run
            return f"none ({part})"

    names = config.data.class_names or tuple(map(str, range(config.model.num_classes)))

    def write() -> None:
        images = torch.cat([part for part in drawn if isinstance(part, Tensor)])
        named = class_captions([k % classes for k in range(len(images))], names) if classes else None
        with writing():
            path.parent.mkdir(exist_ok=True)
            save_sheet(path, images, columns=columns_by_class(classes), captions=named)

    ranks.on_first(write)
    return str(path)


def _draw_share(flow: TarFlow, config: RunConfig, y: Value, rows: slice) -> Tensor | str:
    """The images `rows` of the sheet, 8 bits; or what went wrong. `y` is what all of the sheet are given."""
    training, data = config.training, config.data
    assert training is not None and data is not None
    count = rows.stop - rows.start
    if count == 0:
        return torch.empty(0, config.model.channels, *config.model.image_shape, device="cpu", dtype=torch.uint8)
    y = flow.conditions.rows(y, rows)
    try:
        # The weights are new every time, so that measuring which solver is faster would not pay.
        x = sample(
            flow, count, y, seed=training.seed, denoise=config.measure.sigma, solver="sequential", first=rows.start
        )
    except SamplingError as error:
        return str(error)
    return to_8bit(config.measure.pixels(x.cpu()), data.levels)
