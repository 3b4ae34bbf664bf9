"""The files of `benchmarks.ablations` as one table in Markdown: bits/dim against the baseline's, for the same time.

    python -m benchmarks.ablation_table FILE.json [FILE.json ...]

Differences are pair by pair, to the baseline at the same seed: their median, and with several seeds their spread. Of
one seed the spread is taken to be √2 times that of the baseline over its seeds. A variant helps, or harms, where its
difference is more than twice the spread. Spread is the median absolute deviation times 1.48, which for a normal
distribution is its standard deviation: one run that blows up would otherwise hide everything. Each budget of a file has
columns of its own, and is held against the baseline at that budget.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench import budget_of
from benchmarks.variants import BASELINE

FAR = 100.0  # bits/dim: of what is so far away no digit means anything


@dataclass(frozen=True)
class Difference:
    """A variant against the baseline, bits/dim: negative is better.

    Attributes:
        median: over seeds. spread: of a difference. seeds: how many. cost: of a step, in baseline's.
    """

    median: float
    spread: float
    seeds: int
    cost: float

    @property
    def verdict(self) -> str:
        """What the table says of it."""
        if abs(self.median) <= 2 * self.spread:
            return "no difference"
        return "helps" if self.median < 0 else "harms"

    def __str__(self) -> str:
        if not abs(self.median) < FAR:
            return f"blew up ({self.seeds})"
        return f"{self.median:+.3f} ± {self.spread:.3f} ({self.seeds})".replace("-", "−")


def spread(values: Sequence[float]) -> float:
    """1.48 times the median absolute deviation from the median."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[str, Difference]:
    """By variant, in the order in which they first come up. Raises ValueError without two seeds of the baseline."""
    by_seed = {row["seed"]: row["bits_per_dim"] for row in rows if row["variant"] == BASELINE}
    if len(by_seed) < 2:
        raise ValueError(f"expected the baseline at two seeds or more, got {len(by_seed)}")
    alone = math.sqrt(2) * spread(list(by_seed.values()))
    found = {}
    for name in dict.fromkeys(row["variant"] for row in rows if row["variant"] != BASELINE):
        own = [row for row in rows if row["variant"] == name and row["seed"] in by_seed]
        values = [math.inf if r["bits_per_dim"] is None else r["bits_per_dim"] - by_seed[r["seed"]] for r in own]
        several = len(values) > 1 and all(map(math.isfinite, values))
        cost = statistics.median(row["cost"] for row in own)
        found[name] = Difference(statistics.median(values), spread(values) if several else alone, len(values), cost)
    return found


def by_budget(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same results, one for each budget, which stands in its `set` and its `steps_of_the_baseline`."""
    found = []
    for result in results:
        budgets = sorted({budget_of(row) for row in result["rows"]})
        for budget in budgets:
            name = result["set"] if budgets == [1.0] else f"{result['set']} x{budget:g}"
            rows = [row for row in result["rows"] if budget_of(row) == budget]
            steps = round(result["steps_of_the_baseline"] * budget)
            found.append({**result, "set": name, "steps_of_the_baseline": steps, "rows": rows})
    return found


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row an idea, for each data set its cost, its difference and the verdict."""
    sets = [result["set"] for result in results]
    found = [differences(result["rows"]) for result in results]
    groups = {row["variant"]: row["group"] for result in results for row in result["rows"]}
    heads = "".join(f" {name}: cost | difference, bits/dim | |" for name in sets)
    lines = [f"| question | variant |{heads}", f"| --- | --- |{' --- | --- | --- |' * len(sets)}"]
    for name in dict.fromkeys(name for each in found for name in each):
        cells = ""
        for each in found:
            difference = each.get(name)
            cells += f" {difference.cost:.2f} | {difference} | {difference.verdict} |" if difference else " | | |"
        lines.append(f"| {groups[name]} | {name} |{cells}")
    return "\n".join(lines) + "\n"


def baselines(results: Sequence[Mapping[str, Any]]) -> str:
    """The baseline of each set: median and spread over seeds, and every run."""
    lines = []
    for result in results:
        values = [row["bits_per_dim"] for row in result["rows"] if row["variant"] == BASELINE]
        lines.append(
            f"- {result['set']}: {statistics.median(values):.3f} ± {spread(values):.3f} bits/dim (runs: "
            f"{', '.join(f'{value:.3f}' for value in values)}), {result['steps_of_the_baseline']} steps of "
            f"{result['batch']}\n"
        )
    return "".join(lines)


def main(argv: Sequence[str]) -> int:
    """Print it; 2 after bad input, with one line."""
    if not argv:
        print("usage: python -m benchmarks.ablation_table FILE.json [FILE.json ...]", file=sys.stderr)
        return 2

    def text(results: list[dict[str, Any]]) -> str:
        several = by_budget(results)
        return baselines(several) + "\n" + table(several)

    return print_of([Path(name) for name in argv], text)


def print_of(files: Sequence[Path], text: Callable[[list[dict[str, Any]]], str]) -> int:
    """Print what `text` makes of the results in files; 2 after one line on what is wrong with them."""
    try:
        print(text([json.loads(path.read_text()) for path in files]), end="")
    except (OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
