"""The images and the extractor that `tarflow quality` and `tarflow sweep` judge samples by."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from tarflow.checkpoint import Run
    from tarflow.cli.progress import Progress
    from tarflow.data.load import Splits
    from tarflow.evaluation.quality.judge import Judge


@dataclasses.dataclass
class Judging:
    """What samples are compared with, and on which features."""

    extractor: Annotated[
        Literal["efficientnet", "inception", "classifier"],
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


def open_judge(run: Run, judging: Judging, progress: Progress) -> tuple[Judge, Splits]:
    """The judge of this run's samples, its real images prepared, and the images."""
    from tarflow.evaluation.quality.extractors.extractor import open_extractor
    from tarflow.evaluation.quality.judge import LEAST, Judge
    from tarflow.evaluation.quality.reference import open_reference
    from tarflow.evaluation.run_data import open_splits, stored_data
    from tarflow.storage import cache_directory

    stored_data(run)  # raises before the images are read, which may take long
    if (channels := run.config.model.channels) not in (1, 3):
        raise ValueError(f"{run.path}: expected images of 1 or 3 channels, got {channels}")
    if judging.reference < LEAST:
        raise ValueError(f"--reference: expected at least {LEAST}, got {judging.reference}")
    cache = judging.cache or cache_directory()
    if judging.extractor != "classifier":
        extractor = open_extractor(judging.extractor, run.flow.device, weights=judging.weights)
    splits = open_splits(run, judging.data, progress=progress.loading)
    for name, images in (("training", splits.train), ("held-out", splits.held_out)):  # before hours of sampling
        if len(images) < LEAST:
            raise ValueError(f"{run.path}: expected at least {LEAST} {name} images to compare with, got {len(images)}")
    if judging.extractor == "classifier":
        labels = splits.train.labels
        labelled = None if labels is None else (splits.train.images, labels, run.levels)
        extractor = open_extractor(
            "classifier", run.flow.device, weights=judging.weights, labelled=labelled, cache=cache
        )
    reference = open_reference(
        splits,
        extractor,
        cache,
        limit=judging.reference,
        progress=lambda done, total: progress.preparing("features of real images", done, total),
    )
    return Judge(extractor, reference), splits
