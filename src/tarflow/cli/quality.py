"""`tarflow quality`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tarflow.cli.drawing import Drawing, Solving, setting_of
from tarflow.cli.real_images import Judging, open_judge
from tarflow.jsontext import to_json

if TYPE_CHECKING:
    from torch import Tensor

    from tarflow.data.load import Splits


@dataclasses.dataclass
class Quality:
    """Measure how good samples are, beside what held-out real images score; prints one JSON object.

    Examples:
      tarflow quality runs/photos -n 5000 --guidance 0.2 --temperature 0.3
      tarflow quality runs/digits -n 1000 --guidance 1 --extractor classifier
      tarflow quality runs/cifar10 -n 50000 --extractor inception --weights pt_inception-2015-12-05-6726825d.pth

    Fréchet and kernel distance, precision, recall, density and coverage on the features of a named extractor, against
    the training images as they are stored; each with its N and with the floor, which is what held-out images score at
    the same N. The name of the extractor is a part of every figure's name; FID and KID are those of Inception alone.

    Where model and data have classes, a classifier says whether samples show the intended one, and distances between
    pixels how varied they are; their distances to the nearest training images say whether they are new. What is
    measured is kept in RUN/quality.json, for the report.
    """

    run: Annotated[
        tyro.conf.Positional[Path], tyro.conf.arg(help="a run, a directory with a model, or one step-N", metavar="RUN")
    ]
    n: Annotated[int, tyro.conf.arg(aliases=["-n"], help="how many samples; distances depend on it")] = 1000
    judging: Annotated[Judging, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Judging)
    drawing: Annotated[Drawing, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Drawing)
    seed: Annotated[int, tyro.conf.arg(help="seed of the samples")] = 0
    solving: Annotated[Solving, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Solving)
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="where to compute")] = "auto"


def options(argv: Sequence[str]) -> type:
    return Quality


def run(args: Quality) -> None:
    from tarflow.checkpoint import open_run
    from tarflow.cli.progress import Progress
    from tarflow.config import to_dict
    from tarflow.devices import pick_device
    from tarflow.drawing import labels_in_turn
    from tarflow.evaluation.quality.judge import LEAST, keep_quality

    if args.n < LEAST:
        raise ValueError(f"-n: expected at least {LEAST} samples to measure, got {args.n}")
    run = open_run(args.run, pick_device(args.device))
    y = labels_in_turn(run, (), args.n)
    setting = setting_of(args.drawing, run)
    with Progress() as progress:
        judge, splits = open_judge(run, args.judging, progress)
        sampler = args.solving.sampler(run)
        pixels = sampler.pixels(args.n, y, setting, args.seed, progress.sampling)
        figures = judge.figures(
            pixels, run.levels, lambda done, total: progress.preparing("features of samples", done, total)
        )
        of_pixels = compared_by_pixels(pixels, y, splits)
    assert run.config.data is not None
    values = {
        "run": str(args.run),
        "data": run.config.data.source,
        "samples": args.n,
        "seed": args.seed,
        "redraws": sampler.redraws,
        "clipped_pixels": sampler.clipped_pixels,
        "clipped_images": sampler.clipped_images,
        "setting": to_dict(setting),
        "extractor": {
            "name": judge.extractor.name,
            "description": judge.extractor.description,
            "digest": judge.extractor.digest,
        },
        "reference": {
            "training_images": len(judge.reference.features),
            "held_out_images": len(judge.reference.held_out),
            "digest": judge.reference.digest,
        },
        "figures": {name: figure.to_dict() for name, figure in figures.items()},
        **of_pixels,
    }
    keep_quality(run, values)
    print(to_json(values, indent=2))


def compared_by_pixels(pixels: Tensor, y: Tensor | None, splits: Splits) -> dict[str, Any]:
    """What a classifier and distances between pixels say; with the reasons, in `notes`, for what they cannot."""
    from tarflow.evaluation.quality.classifier import fit_classifier
    from tarflow.evaluation.quality.ratios import novelty, sample_quality

    train, held_out = splits.train, splits.held_out
    keys = (
        "agreement",
        "agreement_standard_error",
        "classifier",
        "classifier_accuracy",
        "diversity",
        "diversity_worst",
        "diversity_worst_class",
        "novelty",
    )
    values: dict[str, Any] = dict.fromkeys(keys)
    notes = []
    if y is None or train.labels is None or held_out.labels is None:
        notes.append("agreement and diversity: there are no classes")
    else:
        try:
            judge = fit_classifier(train.images, train.labels, held_out.images, held_out.labels)
            quality = sample_quality(
                pixels,
                y,
                images=train.images,
                labels=train.labels,
                held_out_images=held_out.images,
                classifier=judge,
            )
            values |= {key: value for key, value in quality.to_dict().items() if key in keys}
        except ValueError as error:
            notes.append(f"agreement and diversity: {error}")
    if values["novelty"] is None:
        try:
            values["novelty"] = novelty(pixels, train.images, held_out.images)
        except ValueError as error:
            notes.append(f"novelty: {error}")
    return values | {"notes": notes}
