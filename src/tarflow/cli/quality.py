"""`tarflow quality`."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated

from tyro.conf import arg

from tarflow.cli.arguments import Device, RunPath
from tarflow.cli.drawing import Drawing, Judging, Solving, check_samples, opened_judge, setting_of
from tarflow.jsontext import to_json


@dataclasses.dataclass
class Quality:
    """Measure how good samples are, beside what held-out real images score; prints one JSON object.

    Examples:
      tarflow quality runs/photos -n 5000 --guidance 0.2 --temperature 0.3
      tarflow quality runs/digits -n 1000 --guidance 1 --extractor classifier
      tarflow quality runs/cifar10 -n 50000 --extractor inception --weights pt_inception-2015-12-05-6726825d.pth

    Fréchet and kernel distance, precision, recall, density and coverage on the features of a named extractor, against
    the training images as they are stored; each with its N and with the floor, which is what held-out images score at
    the same N. The name of the extractor is a part of every figure's name; FID and KID are those of Inception alone,
    and named unverified: none was compared with a published one.

    Where model and data have classes, a classifier says whether samples show the intended one, and distances between
    pixels how varied they are; their distances to the nearest training images say whether they are new. What is
    measured is kept in RUN/quality.json, for the report.
    """

    run: RunPath
    n: Annotated[int, arg(aliases=["-n"], help="how many samples; distances depend on it")] = 1000
    judging: Annotated[Judging, arg(name="")] = dataclasses.field(default_factory=Judging)
    drawing: Annotated[Drawing, arg(name="")] = dataclasses.field(default_factory=Drawing)
    seed: Annotated[int, arg(help="seed of the samples")] = 0
    solving: Annotated[Solving, arg(name="")] = dataclasses.field(default_factory=Solving)
    device: Device = "auto"


def run(args: Quality) -> None:
    from tarflow.checkpoint import open_run
    from tarflow.cli.progress import Progress
    from tarflow.config import to_dict
    from tarflow.devices import pick_device
    from tarflow.drawing import values_like
    from tarflow.evaluation.quality.extractors.small_network import SmallNetwork
    from tarflow.evaluation.quality.judge import keep_quality
    from tarflow.evaluation.quality.ratios import sample_quality
    from tarflow.storage import cache_directory

    check_samples(args.n)
    run = open_run(args.run, pick_device(args.device))
    setting = setting_of(args.drawing, run)
    with Progress() as progress:
        judge, splits = opened_judge(run, args.judging, progress)
        sampler = args.solving.sampler(run)
        y = values_like(run, splits.train, args.n)
        pixels = sampler.pixels(args.n, y, setting, args.seed, progress.sampling)
        figures = judge.figures(pixels, run.levels, partial(progress.preparing, "features of samples"))
        trained = judge.extractor.network
        network = trained if isinstance(trained, SmallNetwork) else None
        of_pixels = sample_quality(
            pixels,
            run.flow.conditions.labels(y),
            splits,
            network=network,
            cache=args.judging.cache or cache_directory(),
        )
    assert run.config.data is not None
    values = {
        "run": args.run,
        "data": run.config.data.source,
        "samples": args.n,
        "seed": args.seed,
        "redraws": sampler.redraws,
        "clipped_pixels": sampler.clipped_pixels,
        "clipped_images": sampler.clipped_images,
        "setting": to_dict(setting),
        **judge.to_dict(),
        "figures": {name: figure.to_dict() for name, figure in figures.items()},
        **of_pixels.to_dict(),
    }
    keep_quality(run, values)
    print(to_json(values, indent=2))
