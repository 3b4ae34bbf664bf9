"""The report on a flow on the columns of a table: its fit, and whether it is as wide as what it has not seen.

For each held-out row, rows are drawn under its conditions; `tarflow.inference.calibration` measures how it lies among
them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tarflow import __version__, storage
from tarflow.checkpoint import METRICS_FILE, read_metrics
from tarflow.data.tables import Table as Rows
from tarflow.data.tables import read_table
from tarflow.inference import calibration
from tarflow.report.build import MARK, PAGE, holds_report
from tarflow.report.calibration import coverage_chart, rank_histogram
from tarflow.report.charts import Series, line_chart
from tarflow.report.parts import TEMPLATES, Drawing, Parts, Section, Table
from tarflow.report.subject import Unavailable
from tarflow.seeding import seeded_permutation
from tarflow.storage import check_vacant
from tarflow.tables import TableRun

DRAWS = 99  # for each held-out row, so that there are 100 ranks
AT_ONCE = 20_000  # rows drawn in a batch
SHOWN = 12  # events whose ranks are drawn; the table has all
LEAST = 50  # held-out rows, of which something can be said
PICTURES = "report-pictures"


def write_table_report(
    run: TableRun,
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
    limit: int = 1000,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Write `out`/report.html on a run on a table, and return its path.

    Args:
        out: a directory, made where it is missing; None is `report` in the run. An older report there is replaced.
        data: where the table is now; None is where it was. Where it has as many rows as the one that was fitted to,
            those are looked at that the fit held out, else all.
        limit: rows that are looked at; of more, a choice by `seed`. say: is told what is computed.

    Raises:
        FileExistsError: what would be replaced in `out` is not of an older report.
        DataError: a table that was named and cannot be read, or lacks a column.
    """
    out = run.path / "report" if out is None else Path(out)
    check_vacant(out / PICTURES)
    if holds_report(out):
        say(f"{out / PAGE}: replaced by this report")
    table = None if data is None else read_table(data)
    out.mkdir(parents=True, exist_ok=True)
    sections = []
    for name, title, compute in (
        ("fitted", "What was fitted to what", lambda: fitted(run)),
        ("curves", "The fit", lambda: curve(run)),
        ("calibration", "Calibration", lambda: calibrated(run, table, limit, seed)),
    ):
        say(f"{run.path.name}: {title.lower()}")
        try:
            sections.append(Section(name, title, compute()))
        except Unavailable as reason:
            sections.append(Section(name, title, [str(reason)]))
    given = f" given {', '.join(run.columns.conditions)}" if run.columns.conditions else ""
    page = TEMPLATES.get_template("rows.html").render(
        name=run.path.resolve().name,
        lead=f"A normalizing flow (TarFlow): the density of {', '.join(run.columns.events)}{given}.",
        sections=sections,
        mark=MARK,
        seed=seed,
        version=__version__,
    )
    storage.write_text(out / PAGE, page + "\n")
    return out / PAGE


def fitted(run: TableRun) -> Parts:
    """Table, columns, model and fit."""
    columns, config, told = run.columns, run.flow.config, run.training
    rows = {"Table": columns.source, "Events": ", ".join(columns.events)}
    rows["Conditions"] = ", ".join(columns.conditions) or "none"
    layers, weights = "-".join(map(str, config.layers)), sum(p.numel() for p in run.flow.parameters())
    rows["Model"] = (
        f"{config.transform}, {config.tokens} tokens, width {config.width}, layers {layers}, {weights:,} parameters"
    )
    if told:
        rows["Rows"] = f"{told['rows']:,} fitted to, {told['held_out_rows']:,} held out (seed {told['seed']})"
        score = f"{told['held_out_log_prob']:.4f} ± {told['standard_error']:.4f} nats a row"
        rows["Held-out log-likelihood"] = f"{score}, at step {told['best_step']:,} of {told['steps']:,}"
        rows["Stopped"] = {
            "patience": "as held-out rows were explained no better",
            "steps": "when all steps were taken",
        }[told["stopped"]]
    return [Table(f"Data, model and fit of {run.path.name}", [], list(rows.items()))]


def curve(run: TableRun) -> Parts:
    """Log-likelihood over the steps, of what is fitted to and of what is held out."""
    metrics = read_metrics(run.path)
    if not metrics:
        raise Unavailable(f"There is no {METRICS_FILE} beside the model, so nothing is known of its fit.")
    train, held_out = ([(float(e["step"]), float(e[name])) for e in metrics] for name in ("train", "held_out"))
    series = [Series("fitted to", train, "first"), Series("held out", held_out, "second", dots=True)]
    chart = line_chart("fit", series, title="Log-likelihood of a row", x_label="step", y_label="nats")
    return [Drawing([chart], "Held-out rows under the averaged weights, the best of which the flow has.")]


def calibrated(run: TableRun, table: Rows | None, limit: int, seed: int) -> Parts:
    """Ranks of the truth among draws, coverage, and a classifier between both; Unavailable without rows."""
    if table is None:
        if not Path(run.columns.source).exists():
            raise Unavailable(f"The table {run.columns.source} is not here; tell by --data where it is.")
        table = read_table(run.columns.source)
    rows = run.held_out(table)
    if len(rows) < LEAST:
        raise Unavailable(f"There are {len(rows)} held-out rows; it takes {LEAST}. Give more of them by --data.")
    rows = rows.choose(seeded_permutation(len(rows), "calibration", seed)[:limit].sort().values)
    draws, at_draws = _drawn(run, rows.c, len(rows), seed)
    truth = rows.x.to(draws)
    ranks = calibration.ranks(truth, draws)
    regions = calibration.expected_coverage(rows.log_prob(), at_draws)
    balls = calibration.tarp(truth, draws, seed=seed)
    numbers = _numbers(rows.c, truth)
    told_apart = calibration.c2st(
        torch.cat([truth, numbers], dim=1), torch.cat([draws[:, 0], numbers], dim=1), seed=seed
    )
    p_values = calibration.uniformity(ranks, DRAWS)
    found = [
        [f"ranks of {name} are uniform", f"p = {p:.3f}"] for name, p in zip(run.columns.events, p_values, strict=True)
    ]
    for what, coverage in (("regions of highest density", regions), ("balls around random points (TARP)", balls)):
        found.append([f"{what} hold what they claim", f"p = {coverage.p_value:.3f}, excess {coverage.excess:+.3f}"])
    found.append(["a classifier tells held-out from drawn rows (C2ST)", f"accuracy {told_apart}"])
    charts = [rank_histogram(ranks[:, k], DRAWS, name) for k, name in enumerate(run.columns.events[:SHOWN])]
    given = "under the conditions of each" if run.columns.conditions else "for each"
    text = (
        f"{len(rows)} held-out rows, and {DRAWS} rows drawn {given}. p is the probability that an exact density would "
        "be as far off: below 0.05 in one of twenty lines by chance. An excess below 0 says that regions hold less "
        "than they claim: the density is too narrow. The classifier sees a row with its conditions and guesses whether "
        "it was drawn; 0.5 is a guess."
    )
    of_ranks = (
        "Ranks of each number among those drawn: high in the middle where the density is too wide, at both ends where "
        "it is too narrow. The dashed lines hold 19 of 20 bins of an exact one."
    )
    held = "What regions hold of held-out rows, less what they claim; dashed, 95 % of exact ones at each level."
    return [
        text,
        Table("Calibration", ["what would be right", "what was found"], found, numbers=True),
        Drawing(charts, of_ranks),
        Drawing([coverage_chart(regions, "highest density"), coverage_chart(balls, "TARP")], held),
    ]


def _drawn(run: TableRun, c: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`DRAWS` rows for each of `count` conditions, (count, DRAWS, E), and their log-densities (count, DRAWS)."""
    draws, logs = [], []
    size = max(1, AT_ONCE // DRAWS)
    for start in range(0, count, size):
        index = torch.arange(start, min(start + size, count), device="cpu", dtype=torch.int64)
        some = None if c is None else run.flow.conditions.rows(c, index.to(run.flow.device))
        some = None if c is None else run.flow.conditions.repeat(some, DRAWS)
        with torch.no_grad():
            x, log_prob = run.flow.sample_and_log_prob(len(index) * DRAWS, some, seed + start)
        draws.append(x.view(len(index), DRAWS, -1))
        logs.append(log_prob.view(len(index), DRAWS))
    return torch.cat(draws), torch.cat(logs)


def _numbers(c: Any, like: Tensor) -> Tensor:
    """Conditions as numbers (N, …) that a classifier takes: words as ones and zeros; none where there are none."""
    parts = () if c is None else c if isinstance(c, tuple) else (c,)
    numbers = [part if part.is_floating_point() else torch.nn.functional.one_hot(part.long()) for part in parts]
    return torch.cat([like[:, :0], *(part.to(like).flatten(1) for part in numbers)], dim=1)
