"""`tarflow report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from tarflow.cli.arguments import Device, check_for_tables, is_table_run


@dataclasses.dataclass
class Report:
    """Write a report on one or more flows: one HTML file that works offline, and its pictures as PNG files.

    Examples:
      tarflow report runs/digits
      tarflow report runs/digits runs/photos --out report/
      tarflow report runs/photos --images 4 --device cuda

    Shows what was trained on what, the architecture, training curves, held-out likelihood beside a Gaussian, samples,
    guidance, denoising, a sample on its way through the blocks, nearest training images, the most and least likely
    held-out images and where their likelihood comes from. What cannot be shown is explained in its place.
    Of a run on a table it shows the fit, and whether held-out rows lie among draws as they should.
    """

    runs: Annotated[
        Positional[tuple[str, ...]],
        arg(help="runs, models, single step-N, or names of `tarflow models`", metavar="RUN [RUN ...]"),
    ]
    out: Annotated[
        Path | None,
        arg(help="the directory to write, `report` in the first RUN when not given; an older report there is replaced"),
    ] = None
    data: Annotated[
        str | None, arg(help="where the images of the runs' training are now; where they were then when not given")
    ] = None
    images: Annotated[int, arg(help="images in a row of a figure; fewer is faster")] = 10
    limit: Annotated[int, arg(help="held-out images that are scored; of more, a seeded choice")] = 1000
    seed: Annotated[int, arg(help="seed of the samples and of the noise")] = 0
    device: Device = "auto"


def options(argv: Sequence[str]) -> type:
    """The options of `report`: where a word is a run on a table, those of `tables.ReportTable`."""
    if not any(map(is_table_run, argv)):
        return Report
    from tarflow.cli.tables import ReportTable  # here, because it waits for torch

    check_for_tables(argv, Report, ReportTable)
    return ReportTable


def run(args: Any) -> None:
    if not isinstance(args, Report):
        from tarflow.cli import tables

        return tables.report(args)
    from tarflow.cli.progress import Progress
    from tarflow.devices import pick_device
    from tarflow.report.build import write_report
    from tarflow.report.subject import Settings, Watch

    if not args.runs:
        raise ValueError("RUN: expected at least one run to report on")
    settings = Settings(args.images, args.limit, args.seed, args.data)
    with Progress() as progress:
        watch = Watch(progress.say, progress.loading, progress.scoring, progress.sampling)
        page = write_report(args.runs, args.out, settings=settings, device=pick_device(args.device), watch=watch)
    print(page)
