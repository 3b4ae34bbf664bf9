"""`tarflow inpaint`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tarflow.cli.arguments import Device, GivenOrOpen, RunPath, check_positive


@dataclasses.dataclass
class Inpaint:
    """Draw a region of an image anew, given the rest of it.

    Examples:
      tarflow inpaint digits three.png --mask region.png -n 8 --out drawn.png
      tarflow inpaint runs/bars bar.png --mask region.png --given angle=30 --out drawn.png

    The mask is a picture that goes through the same scaling as IMAGE: white where to draw. By Hamiltonian Monte Carlo,
    or exactly where the order of the blocks allows; the last line says which, and what the draws are worth. A model
    that was trained with Gaussian noise sees the rest through noise, and the draws are denoised.
    """

    run: RunPath
    image: Annotated[Positional[str], arg(help="a picture", metavar="IMAGE")]
    mask: Annotated[str, arg(help="a picture: white where to draw")]
    out: Annotated[Path, arg(help="sheet.png, images.npz, or a new directory")]
    n: Annotated[int, arg(aliases=["-n"], help="draws")] = 8
    label: Annotated[str, arg(name="class", help="`null`, or a class")] = "null"
    given: GivenOrOpen = ""
    warmup: Annotated[int, arg(help="steps of each chain before any is kept")] = 40
    seed: Annotated[int, arg(help="the same draws for the same seed")] = 0
    device: Device = "auto"


def run(args: Inpaint) -> None:
    import torch

    from tarflow.checkpoint import open_run
    from tarflow.cli.given import numbers_for_images, said_of
    from tarflow.data.load import load_all
    from tarflow.data.numbers import ImageNumbers
    from tarflow.data.options import LoadOptions
    from tarflow.data.sets import given_values
    from tarflow.devices import pick_device
    from tarflow.drawing import ImageWriter, check_out, class_count, class_number
    from tarflow.run_data import check_output
    from tarflow.sampling.inpaint import inpaint

    check_out(args.out)
    check_positive(args, "n", "warmup")
    device = pick_device(args.device)
    run = open_run(args.run, device)
    if args.out.suffix.lower() != ".npz":
        check_output(run, "--out", args.out, args.image)
    model, options = run.config.model, LoadOptions.of(run.config.data, own=False)
    dark = options.replace(pad_with="black")  # what a mask is padded with is not to be drawn
    label = class_number(run, args.label) if class_count(run) else None
    if label is None and args.label != "null":
        raise ValueError(f"--class: {args.run} has no classes")
    numbers = numbers_for_images(run, args.given, None)
    assert not isinstance(numbers, ImageNumbers)  # those of a table
    pictures = {}
    for name, source, how, channels, levels in (
        ("IMAGE", args.image, options, model.channels, run.levels),
        ("--mask", args.mask, dark, 1, 256),
    ):
        found, _ = load_all(source, how, image_size=model.image_shape, channels=channels, levels=levels)
        if len(found) != 1:
            raise ValueError(f"{name}: expected one picture, got {len(found)} in {source}")
        pictures[name] = found.images
    region = pictures["--mask"][0, 0] >= 128
    if not bool(region.any()):
        raise ValueError(f"--mask: expected white where to draw, got none in {args.mask}")
    x = run.measure.clean(pictures["IMAGE"]).to(device)
    labels = None if label is None else torch.tensor([label], device="cpu", dtype=torch.int64)
    y = given_values(run.flow.sequence.condition, labels, numbers)
    drawn = inpaint(
        run.flow, x, region, y, args.n, denoise=run.sigma, chains=args.n, steps=20, warmup=args.warmup, seed=args.seed
    )
    each = None if numbers is None else numbers.expand(args.n, -1)
    with ImageWriter(args.out, run, args.n, None if label is None else [label] * args.n, None, each) as writer:
        writer.add(list(range(args.n)), drawn.samples[:, 0].cpu())
    given = "the null class" if args.label == "null" else f"class {args.label}"
    print(f"{args.out}: {drawn}; {said_of(run, given, numbers)}", file=sys.stderr)
