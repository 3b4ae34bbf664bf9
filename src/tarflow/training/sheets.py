"""Sample sheets: from the same noise every time, so that two of them can be compared; each rank draws its share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from tarflow.config import RunConfig
from tarflow.measure import to_8bit
from tarflow.model.flow import TarFlow
from tarflow.pictures import class_captions, columns_by_class, save_sheet
from tarflow.ranks import Ranks
from tarflow.sampling.sample import SamplingError, sample

SHEET_IMAGES = 100


def draw_sheet(
    flow: TarFlow, config: RunConfig, path: Path, ranks: Ranks, writing: Callable[[], AbstractContextManager[None]]
) -> str:
    """Draw a sheet and write it to `path`, on rank 0; says where it is, or why there is none. All ranks must call it.

    An image is drawn by one rank, from the noise that it has where there is one process. It is written in `writing`.
    """
    assert config.training is not None and config.data is not None
    drawn = ranks.gather(_draw_share(flow, config, ranks.share(SHEET_IMAGES)))
    for part in drawn:
        if isinstance(part, str):  # weights on their way may overflow: no reason to end a run
            return f"none ({part})"

    names = config.data.class_names or tuple(map(str, range(config.model.num_classes)))

    def write() -> None:
        images = torch.cat([part for part in drawn if isinstance(part, Tensor)])
        classes = config.model.num_classes
        named = class_captions([k % classes for k in range(len(images))], names) if classes else None
        with writing():
            path.parent.mkdir(exist_ok=True)
            save_sheet(path, images, columns=columns_by_class(classes), captions=named)

    ranks.on_first(write)
    return str(path)


def _draw_share(flow: TarFlow, config: RunConfig, rows: slice) -> Tensor | str:
    """The images `rows` of the sheet, 8 bits; or what went wrong."""
    training, data, classes = config.training, config.data, config.model.num_classes
    assert training is not None and data is not None
    count = rows.stop - rows.start
    if count == 0:
        return torch.empty(0, config.model.channels, *config.model.image_shape, device="cpu", dtype=torch.uint8)
    y = (torch.arange(SHEET_IMAGES, device="cpu", dtype=torch.int64) % classes)[rows] if classes else None
    try:
        # The weights are new every time, so that measuring which solver is faster would not pay.
        x = sample(
            flow, count, y, seed=training.seed, denoise=config.measure.sigma, solver="sequential", first=rows.start
        )
    except SamplingError as error:
        return str(error)
    return to_8bit(config.measure.pixels(x.cpu()), data.levels)
