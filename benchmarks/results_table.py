"""The files of `benchmarks.ablations` and `benchmarks.peers` as the first table of docs/results.md, in Markdown.

    python -m benchmarks.results_table --best NAME --before NAME [--also NAME …] -- FILE.json [FILE.json ...]

A row a model, a column a data set and budget; a cell is the median of held-out bits/dim over seeds, and in brackets
every seed, in order. Of the official recipe, and of each flow of another package, the learning rate is the one that is
best at the first seed. `--best` and `--before` name the variants that are, and were, the recipe `best`; `NAME@0.5` and
`NAME@0.2`, in half and a fifth of the time, have rows where they were run. `--also` names others. What was not run
stays empty.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation_table import FAR, print_of
from benchmarks.bench import budget_of
from benchmarks.peers import GAUSSIAN, KINDS
from benchmarks.variants import BASELINE, VARIANTS

OFFICIAL = "official recipe, best learning rate"
RATES = {name for name, variant in VARIANTS.items() if variant.group == "learning rate"} | {BASELINE}
SHARES = {"": "", "@0.5": ", half the time", "@0.2": ", a fifth of the time"}


def labels(best: str, before: str, also: Sequence[str] = ()) -> dict[str, str]:
    """What the rows are called, in their order, by the names of variants."""
    named = {BASELINE: OFFICIAL, before: "`best` before"}
    named |= {name: name.replace(f"{before}+", "`best` before, with ").replace("+", ", ") for name in also}
    named |= {best + share: f"`best`{said}" for share, said in SHARES.items()}
    return named | {GAUSSIAN: GAUSSIAN} | {kind.name: kind.name for kind in KINDS.values()}


def column(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Bits/dim of each seed, inf where a run blew up, by variant; of one data set and budget."""
    tried: dict[str, dict[tuple[str, Any], dict[int, float]]] = {}
    for row in rows:
        name = BASELINE if row["variant"] in RATES else row["variant"]
        by_seed = tried.setdefault(name, {}).setdefault((row["variant"], row.get("lr")), {})
        by_seed[row["seed"]] = math.inf if row["bits_per_dim"] is None else row["bits_per_dim"]
    found = {}
    for name, rates in tried.items():
        first = min(seed for by_seed in rates.values() for seed in by_seed)
        chosen = min(rates.values(), key=lambda by_seed: by_seed.get(first, math.inf))
        found[name] = [chosen[seed] for seed in sorted(chosen)]
    return found


def cell(values: Sequence[float]) -> str:
    """The median, and in brackets every value where there are several."""
    words = [f"{value:.3f}" if value < FAR else "blew up" for value in (statistics.median(values), *values)]
    return f"{words[0]} ({', '.join(words[1:])})" if len(values) > 1 else words[0]


def table(results: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Markdown, the rows that `names` has."""
    columns: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for result in results:
        for row in result["rows"]:
            columns.setdefault((result["set"], budget_of(row)), []).append(row)
    sets = list(dict.fromkeys(name for name, _ in columns))
    ordered = sorted(columns, key=lambda key: (sets.index(key[0]), key[1]))
    found = {f"{name} x{budget:g}": column(columns[name, budget]) for name, budget in ordered}
    lines = [f"| bits/dim | {' | '.join(found)} |", f"| --- |{' --- |' * len(found)}"]
    for name, label in names.items():
        if any(name in each for each in found.values()):
            cells = (cell(each[name]) if name in each else "" for each in found.values())
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> int:
    """Print it; 2 after bad input, with one line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results_table", allow_abbrev=False)
    parser.add_argument("--best", required=True, metavar="NAME", help="a variant as in the files")
    parser.add_argument("--before", required=True, metavar="NAME", help="the variant that it is to be better than")
    parser.add_argument("--also", nargs="+", default=[], metavar="NAME", help="other variants")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    options = parser.parse_args(argv)
    return print_of(options.files, lambda results: table(results, labels(options.best, options.before, options.also)))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
