"""`tarflow score`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from tarflow.cli.arguments import (
    ConditionsOfImages,
    Device,
    Flag,
    GivenOrOpen,
    Precision,
    RunPath,
    check_for_tables,
    check_positive,
    is_table_run,
)

MANY_CLASSES = 10  # from which on it is worth saying what a score under each of them costs


@dataclasses.dataclass
class Score:
    """Log-likelihood of every image, one line of a CSV file each, in the order of PATH.

    Examples:
      tarflow score runs/digits-likelihood digits --out scores.csv
      tarflow score runs/photos new-photos/ --out scores.csv --maps maps/

    PATH is a folder, an image, a .npz archive, Parquet or IDX files, or the name of a data set; its labels are not
    used. Columns: `file`; `log_likelihood` in nats, the mean over draws of the noise of the training; `bits_per_dim`,
    or `noisy_bits_per_dim` for a model of noisy images; `rank`, 1 for the image of PATH that belongs most by the score
    that `ranked_by` names; `percentile`, the share of the run's own held-out images that are less likely; `complexity`,
    how many bits a dimension the model saves over a lossless code, and `typicality`, minus how far the bits are from
    those of held-out images in the mean, each with its percentile: both are low for what does not belong where a high
    likelihood misleads; `labels`, what was scored: marginal (log mean_y p(x|y)), null, class=NAME, given (numbers), or
    none for a model without classes; `error`, why a file could not be scored. The file is UTF-8; what in a name would
    break a line, be a formula, or is no UTF-8 is percent-encoded, as in a URL, and `%` itself is %25.
    """

    run: RunPath
    path: Annotated[Positional[str], arg(help="the images", metavar="PATH")]
    out: Annotated[Path, arg(help="the CSV file")]
    label: Annotated[
        str | None, arg(name="class", help="p(x|y) of this class for all images, or of `null`, not log mean_y p(x|y)")
    ] = None
    given: GivenOrOpen = ""
    conditions_from: ConditionsOfImages = None
    maps: Annotated[
        Path | None,
        arg(
            help="a new directory: each image beside its patches' log-likelihoods, from the least likely (red) over "
            "their mean (white) to the most likely (blue), each on its own scale (the first and the last patch, which "
            "some blocks leave as they are, stand apart)"
        ),
    ] = None
    by: Annotated[
        Literal["likelihood", "complexity", "typicality"] | None,
        arg(help="what images are ranked by. Not given: what `evaluate --against` found best, else likelihood"),
    ] = None
    data: Annotated[
        str | None,
        arg(help="where the images of the run's training are now, for the percentiles; where they were when not given"),
    ] = None
    raw_names: Annotated[
        Flag, arg(help="write names byte for byte, in quotes, also where they are no UTF-8 or hold ends of lines")
    ] = False
    draws: Annotated[int, arg(help="draws of the noise for each image")] = 4
    seed: Annotated[int, arg(help="seed of the noise")] = 0
    batch_size: Annotated[int | None, arg(help="images scored at once")] = None
    device: Device = "auto"
    precision: Precision = "auto"


def options(argv: Sequence[str]) -> type:
    """The options of `score`: where a word is a run on a table, those of `tables.ScoreTable`."""
    if not any(map(is_table_run, argv)):
        return Score
    from tarflow.cli.tables import ScoreTable  # here, because it waits for torch

    check_for_tables(argv, Score, ScoreTable)
    return ScoreTable


def run(args: Any) -> None:
    if not isinstance(args, Score):
        from tarflow.cli import tables

        return tables.score(args)
    from tarflow.checkpoint import open_run
    from tarflow.cli.given import numbers_for_images
    from tarflow.cli.progress import Progress
    from tarflow.devices import float32_products, pick_device
    from tarflow.drawing import class_count, class_number
    from tarflow.evaluation.likelihood.held_out import run_scoring
    from tarflow.evaluation.likelihood.table import ranked_by, score_files
    from tarflow.run_data import check_output

    _check(args)
    run = open_run(args.run, pick_device(args.device))
    if run.config.training is None:
        raise ValueError(f"{args.run}: only a model is stored; expected a section `training` in its config.json")
    if args.label is not None and not class_count(run):
        raise ValueError(f"--class: {args.run} has no classes")
    label = None if args.label is None else class_number(run, args.label)
    numbers = numbers_for_images(run, args.given, args.conditions_from)
    scoring = run_scoring(run, label, numbers=numbers is not None, draws=args.draws, seed=args.seed)
    if args.maps is not None:
        check_output(run, "--maps", args.maps, args.path)
    by, why = (args.by, None) if args.by is not None else ranked_by(run, scoring)
    if why is not None:
        print(why, file=sys.stderr)
    with Progress() as progress, float32_products(run.flow.device, tf32=args.precision == "auto"):
        if (classes := scoring.passes(run.flow)) >= MANY_CLASSES:
            progress.say(
                f"without a label, an image goes through the flow once a class, {classes} times: --class null is "
                f"{classes} times cheaper, and scores it under no class in particular"
            )
        found = score_files(
            run,
            args.path,
            args.out,
            scoring=scoring,
            by=by,
            maps=args.maps,
            data=args.data,
            numbers=numbers,
            raw_names=args.raw_names,
            batch_size=args.batch_size,
            loading=progress.loading,
            progress=progress.scoring,
            held_out=progress.scoring_held_out,
        )
    if found.no_reference is not None:
        print(
            f"no percentiles and no typicality: the held-out images of {args.run} cannot be scored: "
            f"{found.no_reference}",
            file=sys.stderr,
        )
    unread = f", {found.unread} of them not scored (see column error)" if found.unread else ""
    unread += f", {found.lost} of them so unlikely that their density is 0" if found.lost else ""
    print(f"{args.out}: {found.images} images{unread}; labels: {found.labels}", file=sys.stderr)


def _check(args: Score) -> None:
    """Raise ValueError naming the option, before anything is read."""
    from tarflow.storage import check_vacant

    if args.out.suffix.lower() != ".csv" or args.out.is_dir():
        raise ValueError(f"--out {args.out}: expected the name of a .csv file")
    check_positive(args, "draws", "batch_size")
    if args.maps is not None:
        check_vacant(args.maps, "--maps")
        if not args.maps.parent.is_dir():
            raise FileNotFoundError(f"--maps {args.maps}: {args.maps.parent} is no directory")
