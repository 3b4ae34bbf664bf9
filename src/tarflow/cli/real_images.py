"""The images and the extractor that `tarflow quality` and `tarflow sweep` judge samples by."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tarflow.evaluation.quality.extractors import EXTRACTORS

if TYPE_CHECKING:
    from tarflow.checkpoint import Run
    from tarflow.cli.progress import Progress
    from tarflow.data.load import Splits
    from tarflow.evaluation.quality.judge import Judge


@dataclasses.dataclass
class Judging:
    """What samples are compared with, and on which features."""

    extractor: Annotated[
        Literal[tuple(EXTRACTORS)],  # type: ignore[valid-type]
        tyro.conf.arg(
            help="of features: efficientnet (EfficientNet-Lite0, from the extra `metrics`), inception (FID's, from a "
            "file given by --weights), or classifier (a small network trained on the spot, of labelled images)"
        ),
    ] = "efficientnet"
    weights: Annotated[
        Path | None, tyro.conf.arg(help="file with the weights of FID's Inception, .pth or .safetensors")
    ] = None
    data: Annotated[
        str | None,
        tyro.conf.arg(help="where the images of the run's training are now; where they were then when not given"),
    ] = None
    reference: Annotated[
        int, tyro.conf.arg(help="training images that samples are compared with at most; of more, a fixed choice")
    ] = 50_000
    cache: Annotated[
        Path | None,
        tyro.conf.arg(
            help="directory for the features of real images; $TARFLOW_CACHE or ~/.cache/tarflow when not given"
        ),
    ] = None


def check_samples(n: int) -> None:
    """Raise ValueError for fewer samples than can be measured, before anything is opened."""
    from tarflow.evaluation.quality.judge import LEAST_IMAGES

    if n < LEAST_IMAGES:
        raise ValueError(f"-n: expected at least {LEAST_IMAGES} samples to measure, got {n}")


def opened_judge(run: Run, judging: Judging, progress: Progress) -> tuple[Judge, Splits]:
    """The judge of this run's samples, its real images prepared, and the images."""
    from tarflow.evaluation.quality.judge import LEAST_IMAGES, open_judge

    if judging.reference < LEAST_IMAGES:
        raise ValueError(f"--reference: expected at least {LEAST_IMAGES}, got {judging.reference}")
    return open_judge(
        run,
        judging.extractor,
        weights=judging.weights,
        source=judging.data,
        limit=judging.reference,
        cache=judging.cache,
        loading=progress.loading,
        progress=partial(progress.preparing, "features of real images"),
    )
