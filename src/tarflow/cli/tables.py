"""`tarflow train`, `score`, `sample` and `report` where the data are the columns of a table."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from tarflow.cli.arguments import Device, RunPath, check_positive, is_table_run, typed_fields
from tarflow.cli.given import check_null_is_known, check_one, given_row
from tarflow.config import names_in
from tarflow.data.options import TABLE_SUFFIXES
from tarflow.data.tables import check_writable_table, is_table, read_table, write_table
from tarflow.model.config import VectorConfig

MODEL = ("tokens", "width", "layers", "transform", "bins", "support", "head_dim", "expansion")
"""Fields of the architecture that can be typed."""
MOST_DRAWS = 10_000_000  # rows of one call of `sample`


@dataclasses.dataclass
class TrainTable:
    """Fit a flow to the columns of a table.

    Examples:
      tarflow train --data table.parquet --out runs/table
      tarflow train --data table.csv --events mass,radius --conditions age,kind --out runs/stars
      tarflow train --data simulations.npz --events theta --conditions x --steps 5000 --out runs/posterior

    Events are what the density is of, p(events | conditions), and are numbers. Conditions are numbers or words, and
    words are classes. A key of an .npz archive whose array has two axes stands for all of its columns. A share of the
    rows is held out, by whose likelihood the fit stops and the best weights are kept. A run directory is left when it
    is done: config.json, model.safetensors, metrics.jsonl.
    """

    data: Annotated[Path, arg(help="the table: a .csv, .parquet, .npz or .npy file")]
    out: Annotated[Path, arg(help="the run directory, new or empty")]
    model: Annotated[Any, arg(name="")]
    events: Annotated[
        str, arg(help="columns, with commas, whose density is learned; all that are numbers when not given")
    ] = ""
    conditions: Annotated[str, arg(help="columns, with commas, that it is conditioned on; none when not given")] = ""
    held_out_fraction: Annotated[float, arg(help="share of the rows that is held out")] = 0.1
    steps: Annotated[
        int | None, arg(help="optimizer steps at most; a hundred passes over the rows, 1000 to 4000, when not given")
    ] = None
    patience: Annotated[
        int, arg(help="held-out evaluations, of 40 in all, without a better one before it stops; 0 never does")
    ] = 10
    batch_size: Annotated[int, arg(help="rows an optimizer step")] = 256
    lr: Annotated[float, arg(help="highest learning rate")] = 5e-3
    optimizer: Annotated[
        Literal["adamw", "muon"], arg(help="muon: Muon for the matrices inside the Transformers, AdamW for the rest")
    ] = "adamw"
    label_drop: Annotated[
        float, arg(help="share of the conditions dropped in training, so that the density without them is learned too")
    ] = 0.0
    seed: Annotated[int, arg(help="seed of the weights, the split and the order of the rows")] = 0
    device: Device = "cpu"


@dataclasses.dataclass
class ScoreTable:
    """Log-likelihood of every row of a table, nats, given its conditions.

    Example:
      tarflow score runs/table table.parquet --out scores.csv

    The table has the columns that the run was trained on; others are not looked at. Columns of the result: `row`, from
    0, and `log_likelihood`.
    """

    run: RunPath
    table: Annotated[Positional[Path], arg(help="a .csv, .parquet, .npz or .npy file", metavar="TABLE")]
    out: Annotated[Path, arg(help="the result: a .csv, .parquet or .npz file")]
    device: Device = "cpu"


@dataclasses.dataclass
class SampleTable:
    """Draw rows from a flow on the columns of a table.

    Examples:
      tarflow sample runs/table -n 1000 --out draws.csv
      tarflow sample runs/stars -n 1000 --given age=4.5,kind=dwarf --out draws.parquet
      tarflow sample runs/stars -n 10 --conditions-from observed.csv --out draws.parquet

    With --conditions-from, n rows are drawn for each of its rows, and `row` says which, from 0.
    """

    run: RunPath
    out: Annotated[Path, arg(help="the result: a .csv, .parquet or .npz file")]
    n: Annotated[int, arg(aliases=["-n"], help="how many rows; of each row of --conditions-from")] = 100
    given: Annotated[
        str, arg(help="values of the conditions: name=value, with commas; or `null`, which leaves them open")
    ] = ""
    conditions_from: Annotated[Path | None, arg(help="a table with the columns of the conditions")] = None
    seed: Annotated[int, arg(help="row k is the same for the same seed, however many are drawn")] = 0
    batch_size: Annotated[int | None, arg(help="rows drawn at once")] = None
    device: Device = "cpu"


@dataclasses.dataclass
class ReportTable:
    """Write a report on a flow on the columns of a table: one HTML file that works offline.

    Example:
      tarflow report runs/table

    Shows what was fitted to what, its curve, and its calibration: rows are drawn under the conditions of each held-out
    row, and where the density is right, its numbers lie among theirs anywhere as often as anywhere else.
    """

    run: RunPath
    out: Annotated[
        Path | None,
        arg(help="the directory to write, `report` in RUN when not given; an older report there is replaced"),
    ] = None
    data: Annotated[Path | None, arg(help="where the table is now; where it was fitted to when not given")] = None
    limit: Annotated[int, arg(help="held-out rows that are looked at; of more, a seeded choice")] = 1000
    seed: Annotated[int, arg(help="seed of the draws")] = 0
    device: Device = "cpu"


def train_options(argv: Sequence[str]) -> type | None:
    """The options of `train` where the words are about a table, else None.

    Raises ValueError where a run on a table is to be resumed.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("data", "out", "events", "conditions"):
        parser.add_argument(f"--{name}", nargs="?")
    parser.add_argument("--resume", action="store_true")
    words, _ = parser.parse_known_args(argv)
    if words.resume and words.out and is_table_run(words.out):
        raise ValueError(f"--resume: {words.out} is a run on a table, which is written when it is done; train anew")
    gone = words.data and words.data.endswith(TABLE_SUFFIXES) and not Path(words.data).exists()
    if not (words.events or (words.data and is_table(words.data)) or (words.conditions and gone)):
        return None  # of images, or of what is said to be missing as images are
    fields = [("model", Annotated[typed_fields(VectorConfig, {}, MODEL), arg(name="")])]
    cls = dataclasses.make_dataclass("TrainTable", fields, bases=(TrainTable,), kw_only=True)
    cls.__doc__ = TrainTable.__doc__
    return cls


def train(args: Any) -> None:
    from tarflow.cli.progress import Progress
    from tarflow.devices import pick_device
    from tarflow.tables import choose_columns, fit_table

    check_positive(args, "batch_size", "steps")
    table = read_table(args.data)
    columns = choose_columns(table, names_in(args.events), names_in(args.conditions))
    given = f" given {', '.join(columns.conditions)}" if columns.conditions else ""
    with Progress() as progress:
        progress.say(f"{args.data}: {len(table)} rows; density of {', '.join(columns.events)}{given}")
        _, result = fit_table(
            table,
            columns,
            args.out,
            model=args.model,
            seed=args.seed,
            device=pick_device(args.device),
            progress=progress.fitting,
            held_out=args.held_out_fraction,
            steps=args.steps,
            patience=args.patience or None,
            batch_size=args.batch_size,
            lr=args.lr,
            optimizer=args.optimizer,
            label_drop=args.label_drop,
        )
    print(f"{args.out}: {result}", file=sys.stderr)


def score(args: ScoreTable) -> None:
    import numpy as np

    from tarflow.devices import pick_device
    from tarflow.tables import open_table_run

    check_writable_table(args.out, "--out")
    _check_apart(args.out, args.table)
    run = open_table_run(args.run, pick_device(args.device))
    scores = run.score(read_table(args.table)).numpy()
    write_table(args.out, {"row": np.arange(len(scores)), "log_likelihood": scores})
    print(f"{args.out}: {len(scores)} rows, mean log-likelihood {scores.mean():.4f} nats", file=sys.stderr)


def report(args: ReportTable) -> None:
    from tarflow.cli.progress import Progress
    from tarflow.devices import pick_device
    from tarflow.report.rows import write_table_report
    from tarflow.tables import open_table_run

    check_positive(args, "limit")
    run = open_table_run(args.run, pick_device(args.device))
    with Progress() as progress:
        page = write_table_report(run, args.out, data=args.data, limit=args.limit, seed=args.seed, say=progress.say)
    print(page)


def sample(args: SampleTable) -> None:
    from tarflow.devices import pick_device
    from tarflow.tables import open_table_run

    check_positive(args, "n", "batch_size")
    check_writable_table(args.out, "--out")
    check_one(args.given, args.conditions_from)
    if args.conditions_from is not None:
        _check_apart(args.out, args.conditions_from)
    run = open_table_run(args.run, pick_device(args.device))
    named = run.columns.conditions
    if named and not args.given and args.conditions_from is None:
        raise ValueError(f"--given or --conditions-from: expected one; {args.run} is conditioned on {', '.join(named)}")
    if not named and (args.given or args.conditions_from is not None):
        raise ValueError(f"--given, --conditions-from: {args.run} has no conditions")
    given, table = None, args.conditions_from
    if named:
        given = given_row(args.given, named, run.columns.words) if table is None else read_table(table)
        if given is None:
            check_null_is_known(args.run, named, run.training.get("label_drop", 0))
    rows = args.n * (1 if given is None else len(given))
    if rows > MOST_DRAWS:
        raise ValueError(f"-n: {rows} rows in all; expected at most {MOST_DRAWS}")
    drawn = run.sample(args.n, given, args.seed, null=given is None, batch_size=args.batch_size)
    write_table(args.out, drawn)
    print(f"{args.out}: {rows} rows of {', '.join(drawn)}", file=sys.stderr)


def _check_apart(out: Path, source: Path) -> None:
    """Raise ValueError where a result would be written over what it is made of."""
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"--out {out}: the table itself; give another name")
