"""`tarflow evaluate`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclasses.dataclass
class Evaluate:
    """Score a flow on held-out images, beside a Gaussian fitted to the training images; prints one JSON object.

    Examples:
      tarflow evaluate runs/digits
      tarflow evaluate runs/cifar10 --data cifar10/ --draws 8 --limit 1000

    `bits_per_dim` is that of the data, by uniform dequantisation. A model trained with Gaussian noise σ is a model of
    noisy images: its score is the density of x + σε, named `noisy_bits_per_dim`, and its `bits_per_dim` is null.

    A conditional model is a classifier, argmax_y p(x|y): with labelled images the object has its accuracy, calibration
    error (15 bins) and log-loss (nats) as `bayes_…`; else those are null.
    """

    run: Annotated[
        tyro.conf.Positional[Path], tyro.conf.arg(help="a run, a directory with a model, or one step-N", metavar="RUN")
    ]
    data: Annotated[str | None, tyro.conf.arg(help="name or path of the images; those of the run when not given")] = (
        None
    )
    split: Annotated[Literal["held-out", "train", "all"], tyro.conf.arg(help="which images are scored")] = "held-out"
    labels: Annotated[
        Literal["auto", "given", "null", "marginal"],
        tyro.conf.arg(
            help="p(x|y) of the given labels, of the null class, or log mean_y p(x|y); "
            "auto: given where there are any, else marginal"
        ),
    ] = "auto"
    draws: Annotated[int, tyro.conf.arg(help="draws of the noise for each image")] = 4
    limit: Annotated[int | None, tyro.conf.arg(help="only so many images, chosen by the seed")] = None
    seed: Annotated[int, tyro.conf.arg(help="seed of the noise")] = 0
    batch_size: Annotated[int | None, tyro.conf.arg(help="images scored at once")] = None
    classify: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="classify by Bayes' rule too, where model and data have classes: one more pass for each"),
    ] = True
    skip_bad: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="leave out files that cannot be read")
    ] = False
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="where to compute")] = "auto"


def options(argv: Sequence[str]) -> type:
    return Evaluate


def run(args: Evaluate) -> None:
    from tarflow.checkpoint import open_run
    from tarflow.cli.progress import Progress
    from tarflow.data.load import load, load_all
    from tarflow.devices import pick_device
    from tarflow.evaluation.bayes import BAYES_KEYS, evaluate_bayes
    from tarflow.evaluation.gaussian import NoYardstick, fit_yardstick
    from tarflow.evaluation.likelihood import evaluate_likelihood

    run = open_run(args.run, pick_device(args.device))
    model, data, training = run.config.model, run.config.data, run.config.training
    if data is None or training is None:
        raise ValueError(
            f"{args.run}: only a model is stored; expected sections `data` and `training` in its config.json"
        )
    source = args.data or data.source
    same = source == data.source
    shape: dict[str, Any] = {
        "image_size": model.image_shape,
        "channels": model.channels,
        "levels": run.levels,
        "class_names": data.class_names or None,
        "skip_bad": args.skip_bad,
    }
    with Progress() as progress:
        splits = load(
            source,
            **shape,
            held_out_fraction=data.held_out_fraction,
            split_seed=data.split_seed,
            storage=data.storage if same else "auto",
            progress=progress.loading,
        )
        if args.split == "all" or (args.split == "held-out" and not same and not splits.own_split):
            images, split = (
                load_all(source, **shape)[0],
                "all",
            )  # a seeded fraction means nothing in a set never trained on
        else:
            images, split = (splits.train, "train") if args.split == "train" else (splits.held_out, "held-out")
        if args.limit is not None:
            if args.limit < 1:
                raise ValueError(f"--limit: expected a positive number, got {args.limit}")
            images = images.choice(args.limit, args.seed)
        if same or splits.own_split:
            yardstick = fit_yardstick(splits.train.images, run.levels, training.noise, training.noise_std)
        else:
            yardstick = NoYardstick(f"{source} has no training images of its own to fit a Gaussian to")
        result = evaluate_likelihood(
            run.flow,
            images.images,
            images.labels if model.num_classes else None,
            levels=run.levels,
            noise=training.noise,
            noise_std=training.noise_std,
            draws=args.draws,
            seed=args.seed,
            batch_size=args.batch_size,
            label_policy=None if args.labels == "auto" else args.labels,
            yardstick=yardstick,
            progress=progress.scoring,
        )
        values = result.to_dict() | dict.fromkeys(BAYES_KEYS)
        if args.classify and model.num_classes and images.labels is not None:
            values |= evaluate_bayes(
                run.flow,
                images.images,
                images.labels,
                levels=run.levels,
                noise=training.noise,
                noise_std=training.noise_std,
                draws=args.draws,
                seed=args.seed,
                batch_size=args.batch_size,
                progress=progress.scoring,
            ).to_dict()
    variant = splits.variant or (data.variant if same else "")
    values |= {"data": source, "split": split, "run": str(args.run)}
    values |= {"data_variant": variant or None, "trained_on_variant": data.variant or None}
    print(json.dumps(values, indent=2))
