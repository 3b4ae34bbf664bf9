"""`tarflow sample`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from tarflow.cli.arguments import Device, RunPath, check_for_tables, is_table_run
from tarflow.cli.drawing import Drawing, Solving, setting_of
from tarflow.cli.given import given_numbers


@dataclasses.dataclass
class Sample:
    """Draw images from a trained flow.

    Examples:
      tarflow sample runs/digits -n 100 --out digits.png
      tarflow sample runs/digits -n 64 --guidance 2 --classes 3 8 --out grid.png
      tarflow sample runs/photos -n 64 --guidance 0.2 --temperature 0.3 --out folder/
      tarflow sample runs/cifar10 -n 50000 --seed 1 --out samples.npz
      tarflow sample runs/bars -n 16 --given angle=30,brightness=0.5 --out bars.png

    A name ending in .png is one sheet; in .npz, arrays `images` (N, H, W, C) uint8 and `labels`; anything else is a new
    directory for PNG files. Samples of a model that was trained with Gaussian noise are denoised with its σ. Where
    `tarflow sweep` has found the best guidance and denoising, those are the default, and a line on stderr says so.
    """

    run: RunPath
    out: Annotated[Path, arg(help="sheet.png, samples.npz, or a new directory")]
    n: Annotated[int, arg(aliases=["-n"], help="how many")] = 64
    classes: Annotated[
        tuple[str, ...], arg(help="names or numbers of classes to go through, or `null`; all of them when not given")
    ] = ()
    given: Annotated[
        str, arg(help="of a model given numbers, these: name=value, with commas; or `null`, which leaves them open")
    ] = ""
    conditions_from: Annotated[
        Path | None, arg(help="a table with columns of these numbers: n images are drawn for each of its rows")
    ] = None
    drawing: Annotated[Drawing, arg(name="")] = dataclasses.field(default_factory=Drawing)
    seed: Annotated[int, arg(help="image k is the same for the same seed, however many are drawn")] = 0
    solving: Annotated[Solving, arg(name="")] = dataclasses.field(default_factory=Solving)
    columns: Annotated[int | None, arg(help="columns of a sheet; the number of classes where there are any")] = None
    device: Device = "auto"


def options(argv: Sequence[str]) -> type:
    """The options of `sample`: where a word is a run on a table, those of `tables.SampleTable`."""
    if not any(map(is_table_run, argv)):
        return Sample
    from tarflow.cli.tables import SampleTable  # here, because it waits for torch

    check_for_tables(argv, Sample, SampleTable)
    return SampleTable


def run(args: Any) -> None:
    if not isinstance(args, Sample):
        from tarflow.cli import tables

        return tables.sample(args)
    from tarflow.checkpoint import open_run
    from tarflow.cli.progress import Progress
    from tarflow.devices import pick_device
    from tarflow.drawing import check_out, class_count
    from tarflow.run_data import check_output

    if args.n < 1:
        raise ValueError(f"-n: expected a positive number, got {args.n}")
    check_out(args.out)
    run = open_run(args.run, pick_device(args.device))
    if args.out.suffix.lower() != ".npz":
        check_output(run, "--out", args.out)
    if args.classes and not class_count(run):
        raise ValueError(f"--classes: {run.path} has no classes")
    numbers = given_numbers(run, args.given, args.conditions_from)
    sampler = args.solving.sampler(run)
    setting = setting_of(args.drawing, run)
    with Progress() as progress:
        sampler.write(args.out, args.n, args.classes, setting, args.seed, args.columns, progress.sampling, numbers)
    again = f", {sampler.redraws} drawn again because they were not finite" if sampler.redraws else ""
    n = args.n if numbers is None else args.n * len(numbers)
    print(f"{args.out}: {n} samples, {setting}{again}", file=sys.stderr)
