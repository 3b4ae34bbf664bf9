"""`tarflow evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from tarflow.cli.arguments import Device, Flag, Precision, RunPath, SkipBad, check_positive
from tarflow.jsontext import to_json

if TYPE_CHECKING:
    from torch import Tensor

    from tarflow.checkpoint import Run
    from tarflow.cli.progress import Progress
    from tarflow.data.sets import ImageSet
    from tarflow.evaluation.likelihood.evaluation import Evaluation


MANY_CLASSES = 20  # from which on it is worth saying what classifying costs


@dataclasses.dataclass
class Evaluate:
    """Score a flow on held-out images, beside a Gaussian fitted to the training images; prints one JSON object.

    Examples:
      tarflow evaluate runs/digits
      tarflow evaluate runs/cifar10 --data cifar10/ --draws 8 --limit 1000
      tarflow evaluate runs/digits-likelihood --against inverted shuffled photos/

    `bits_per_dim` is that of the data, by uniform dequantisation. A model trained with Gaussian noise σ is a model of
    noisy images: its score is the density of x + σε, named `noisy_bits_per_dim`, and its `bits_per_dim` is null.
    `importance_bits_per_dim` is a tighter bound from the same draws, and with more of them tighter. `by_class` has the
    score of each class, `float64_…` what rounding does to the score.

    A conditional model is a classifier, argmax_y p(x|y): with labelled images the object has its accuracy, calibration
    error (15 bins) and log-loss (nats) as `bayes_…`; else those are null.

    `--against` tries the flow as a detector of images that do not belong: the area under the ROC curve (AUROC) of the
    likelihood, and of two corrections of it, because likelihoods mislead; see docs/tutorials/likelihoods.md. Tried on
    the run's own held-out images, the best of the three is kept in RUN/detector.json, and `tarflow score` ranks by it.
    """

    run: RunPath
    data: Annotated[str | None, arg(help="name or path of the images; those of the run when not given")] = None
    conditions_from: Annotated[
        Path | None,
        arg(help="of a model given numbers, a table with those of the images; that of its training when not given"),
    ] = None
    split: Annotated[Literal["held-out", "train", "all"], arg(help="which images are scored")] = "held-out"
    labels: Annotated[
        Literal["auto", "given", "null", "marginal"],
        arg(
            help="p(x|y) of the given labels, of the null class, or log mean_y p(x|y); "
            "auto: given where there are any, else marginal"
        ),
    ] = "auto"
    draws: Annotated[int, arg(help="draws of the noise for each image")] = 4
    limit: Annotated[int | None, arg(help="only so many images, chosen by the seed")] = None
    seed: Annotated[int, arg(help="seed of the noise")] = 0
    batch_size: Annotated[int | None, arg(help="images scored at once")] = None
    no_classify: Annotated[
        Flag, arg(help="leave out the classification by Bayes' rule, which takes a pass for each class")
    ] = False
    float64: Annotated[int, arg(help="images scored again in float64; 0 scores none")] = 16
    by_patch: Annotated[Flag, arg(help="the score of each patch, too")] = False
    against: Annotated[
        tuple[str, ...],
        arg(
            help="images that do not belong: names or paths, `inverted` (the negatives of the scored images), or "
            "`shuffled` (their pixels in another order)"
        ),
    ] = ()
    no_save: Annotated[Flag, arg(help="do not keep what --against finds best")] = False
    skip_bad: SkipBad = False
    device: Device = "auto"
    precision: Precision = "auto"


def run(args: Evaluate) -> None:
    from tarflow.checkpoint import open_run
    from tarflow.cli.given import check_open
    from tarflow.cli.progress import Progress
    from tarflow.devices import float32_products, pick_device
    from tarflow.evaluation.likelihood.evaluation import choose_images, evaluate_images
    from tarflow.evaluation.likelihood.gaussian import NoYardstick, fit_yardstick
    from tarflow.evaluation.likelihood.scoring import Scoring

    if args.float64 < 0:
        raise ValueError(f"--float64: expected 0 or more images, got {args.float64}")
    check_positive(args, "draws", "limit", "batch_size")
    run = open_run(args.run, pick_device(args.device))
    if args.against or args.labels == "null":
        check_open(run, "--against: others have no numbers" if args.against else "--labels null: not of this run")
    data, classes = run.config.data, run.config.model.num_classes
    if data is None or run.config.training is None:
        raise ValueError(
            f"{args.run}: only a model is stored; expected sections `data` and `training` in its config.json"
        )
    source = args.data or data.source
    with Progress() as progress, float32_products(run.flow.device, tf32=args.precision == "auto"):
        images, split, splits, own = choose_images(
            run,
            args.data,
            args.split,
            skip_bad=args.skip_bad,
            progress=progress.loading,
            conditions_from=None if args.conditions_from is None else str(args.conditions_from),
        )
        if args.limit is not None:
            images = images.choice(args.limit, args.seed)
        others = {name: _others(args, run, images, name, progress) for name in args.against}
        if own or splits.own_split:
            yardstick = fit_yardstick(splits.train.images, run.measure)
        else:
            yardstick = NoYardstick(f"{source} has no training images of its own to fit a Gaussian to")
        if classes > MANY_CLASSES and images.labels is not None and not args.no_classify:
            progress.say(f"classifying takes a pass for each of {classes} classes; --no-classify does not")
        found = evaluate_images(
            run,
            images,
            Scoring(run.measure, args.draws, args.seed, None if args.labels == "auto" else args.labels),
            yardstick=yardstick,
            against=others,
            classify=not args.no_classify,
            patches=args.by_patch,
            float64=args.float64,
            batch_size=args.batch_size,
            progress=progress.scoring,
        )
        if found.against and own and split == "held-out":
            _keep_best(args, run, found, progress)
    variant = splits.variant or (data.variant if own else "")
    values = found.to_dict() | {"data": source, "split": split, "run": args.run}
    values |= {"data_variant": variant or None, "trained_on_variant": data.variant or None}
    print(to_json(values, indent=2))


def _others(args: Evaluate, run: Run, images: ImageSet, name: str, progress: Progress) -> Tensor:
    """Images that do not belong, (N, C, H, W) uint8, by their name or path, or made of those that do."""
    from tarflow.data.load import load_all
    from tarflow.evaluation.likelihood.anomalies import TRANSFORMS
    from tarflow.run_data import image_options

    if name in TRANSFORMS:
        return TRANSFORMS[name](images.images, run.levels, args.seed)
    options = image_options(run, class_names=None, skip_bad=args.skip_bad, progress=progress.loading)
    found = load_all(name, options)[0]
    return (found if args.limit is None else found.choice(args.limit, args.seed)).images


def _keep_best(args: Evaluate, run: Run, found: Evaluation, progress: Progress) -> None:
    """Keep the detector that did best with the run, and say so; or why it is not kept."""
    from tarflow.evaluation.likelihood.anomalies import best_detector, save_detector

    best = best_detector(run, found.against_labels, found.against)
    kept = "not kept"
    if not args.no_save:
        try:
            kept = f"kept in {save_detector(run, best)}: `tarflow score` ranks by it from now on"
        except OSError as error:  # someone else's run
            kept = f"not kept, {run.path} cannot be written to ({error.strerror or error})"
    progress.say(f"{best}; {kept}")
