"""`tarflow denoise`."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tarflow.cli.arguments import (
    ConditionsOfImages,
    Device,
    Flag,
    GivenOrOpen,
    RunPath,
    SkipBad,
    check_positive,
)


@dataclasses.dataclass
class Denoise:
    """Remove the noise that a flow was trained with from images: one step of Tweedie's formula, x + σ² ∇ log p(x).

    Examples:
      tarflow denoise runs/digits noisy/ --out clean/
      tarflow denoise runs/digits digits --add-noise --out clean.png      (how well does it work? prints the PSNR)
      tarflow denoise runs/bars noisy/ --given angle=30 --out clean/

    PATH is a folder, an image, a .npz archive, Parquet or IDX files, or the name of a data set. The images are expected
    to hold noise of the σ stored with the run, in units where pixels span -1 to 1. A model given numbers takes those of
    --given or --conditions-from; else they are left open, and the score is that of p(x), as training learned it.
    """

    run: RunPath
    path: Annotated[Positional[str], arg(help="the noisy images", metavar="PATH")]
    out: Annotated[Path, arg(help="a new directory, sheet.png or images.npz")]
    noise_std: Annotated[float | None, arg(help="σ, instead of the one stored with the model")] = None
    label: Annotated[
        str, arg(name="class", help="`data` (the labels of PATH, null where it has none), `null`, or one class for all")
    ] = "data"
    given: GivenOrOpen = ""
    conditions_from: ConditionsOfImages = None
    add_noise: Annotated[Flag, arg(help="add that noise first, to clean images")] = False
    limit: Annotated[int | None, arg(help="only the first so many images")] = None
    seed: Annotated[int, arg(help="seed of the added noise")] = 0
    batch_size: Annotated[int | None, arg(help="images differentiated at once")] = None
    skip_bad: SkipBad = False
    device: Device = "auto"


def run(args: Denoise) -> None:
    import torch

    from tarflow.checkpoint import open_run
    from tarflow.cli.given import numbers_for_images, said_of
    from tarflow.cli.progress import Progress
    from tarflow.data.load import load_all
    from tarflow.data.numbers import ImageNumbers
    from tarflow.data.options import LoadOptions
    from tarflow.data.sets import given_values
    from tarflow.devices import pick_device
    from tarflow.drawing import ImageWriter, check_out, class_count, class_number
    from tarflow.evaluation.quality.psnr import psnr
    from tarflow.fields import real
    from tarflow.run_data import check_output
    from tarflow.sampling.denoise import denoise
    from tarflow.seeding import seeded_generator

    check_out(args.out)
    device = pick_device(args.device)
    run = open_run(args.run, device)
    sigma = args.noise_std if args.noise_std is not None else run.sigma
    if sigma is None:
        raise ValueError(
            f"{args.run}: not trained with gaussian noise, so there is none that it could remove; give --noise-std"
        )
    real("--noise-std", sigma, "a positive sigma", lambda value: value > 0)
    check_positive(args, "limit", "batch_size")
    if args.out.suffix.lower() != ".npz":
        check_output(run, "--out", args.out, args.path)
    model = run.config.model
    classes = class_count(run)
    if not classes and args.label not in ("data", "null"):
        raise ValueError(f"--class: {args.run} has no classes")
    label = class_number(run, args.label) if classes and args.label != "data" else None
    named = run.class_names if classes and args.label == "data" else None
    numbers = numbers_for_images(run, args.given, args.conditions_from)
    with Progress() as progress:
        images, skipped = load_all(
            args.path,
            LoadOptions.of(run.config.data, own=False),
            image_size=model.image_shape,
            channels=model.channels,
            levels=run.levels,
            class_names=named,
            skip_bad=args.skip_bad,
            progress=progress.loading,
        )
    for name, reason in skipped:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if args.limit is not None:
        images = images.subset(range(min(args.limit, len(images))))
    labels, by = images.labels if classes else None, "the labels of the data"
    if label is not None:
        labels, by = torch.full((len(images),), label, device="cpu", dtype=torch.int64), f"class {args.label}"
    elif labels is None:
        by = "the null class"
    by = said_of(run, by, numbers)
    if isinstance(numbers, ImageNumbers):
        numbers = numbers.of(images.names)
    elif numbers is not None:
        numbers = numbers.expand(len(images), -1)
    y = given_values(run.flow.sequence.condition, labels, numbers)
    noisy = clean = run.measure.clean(images.images)
    if args.add_noise:
        generator = seeded_generator(args.seed, "denoise")
        noisy = clean + sigma * torch.randn(clean.shape, generator=generator, device="cpu", dtype=torch.float32)
    columns = math.ceil(math.sqrt(len(images)))
    with ImageWriter(
        args.out, run, len(images), None if labels is None else labels.tolist(), columns, numbers
    ) as writer:
        cleaned = denoise(run.flow, noisy.to(device), sigma, y, batch_size=args.batch_size).cpu()
        writer.add(list(range(len(images))), cleaned)
    line = f"{args.out}: {len(images)} images denoised with σ={sigma}, {by}"
    if args.add_noise:
        line += f"; PSNR {psnr(noisy, clean):.2f} dB noisy, {psnr(cleaned, clean):.2f} dB denoised"
    print(line, file=sys.stderr)
