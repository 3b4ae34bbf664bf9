"""Which changes of the official recipe help? Every idea beside the baseline, for the same time, on the same images.

    python -m benchmarks.ablations --set fashion-mnist --variants all --seeds 0 --out FILE.json
    python -m benchmarks.ablations --set cifar10 --data FOLDER --variants baseline 'muon 2e-3+rotary@0.5' \\
        --seeds 0 1 2 --out FILE.json

A variant is a name of `benchmarks.variants.VARIANTS`, several of them joined by `+`, and optionally `@` and a share of
the time. `--budgets 1 4` gives each of them, the baseline too, once what `--steps` of the baseline cost and once four
times that; how time is shared out is in `benchmarks.bench`.

The file of `--out` is written anew after each run; runs that are in it already are not done again. `--official DIR`, a
clone of apple/ml-tarflow, adds the row `official code`: their model and their optimizer on those very batches.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench import FINAL_IMAGES, POINTS, Bench, budget_of, describe, open_bench, parser_of, read, write
from benchmarks.variants import BASELINE, VARIANTS, together

OFFICIAL = "official code"


def run(bench: Bench, name: str, budget: float, seed: int, clone: Path | None) -> dict[str, Any]:
    """One row: a variant at one budget and one seed."""
    names, _, share = name.partition("@")
    variant = together(names.split("+")) if names != OFFICIAL else VARIANTS[BASELINE]
    cost = bench.cost(variant, seed)  # of the official code: 1, so that it takes the baseline's steps
    steps = max(POINTS, round(bench.steps * budget * float(share or 1) / cost))
    if names == OFFICIAL:
        assert clone is not None
        trained = bench.train_official(clone, steps, seed)
    else:
        trained = bench.train(variant, steps, seed)
    final = bench.score(trained.flow, FINAL_IMAGES)
    row = {"variant": name, "group": variant.group, "budget": budget, "seed": seed, "cost": cost, "steps": steps}
    row |= {key: value if math.isfinite(value) else None for key, value in final.items()}
    return row | {"seconds": trained.seconds, "curve": trained.curve}


def main(argv: Sequence[str]) -> int:
    """Run what is asked for; 2 after bad input, with one line."""
    parser = parser_of("ablations")
    parser.add_argument("--variants", nargs="+", default=["all"], help="names, joined by +, with @share of the time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--official", type=Path, help="a clone of apple/ml-tarflow, for the row 'official code'")
    options = parser.parse_args(argv)
    wanted = list(VARIANTS) if options.variants == ["all"] else options.variants
    known = {*VARIANTS, OFFICIAL}
    for name in wanted:
        unknown = [part for part in name.partition("@")[0].split("+") if part not in known]
        if unknown:
            print(f"--variants: expected names among {', '.join(sorted(known))}, got {unknown[0]!r}", file=sys.stderr)
            return 2
    if OFFICIAL in wanted and options.official is None:
        print(f"--official: missing; {OFFICIAL!r} needs a clone of apple/ml-tarflow", file=sys.stderr)
        return 2
    try:
        bench = open_bench(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    result = read(options.out) or describe(bench, options)
    done = {(row["variant"], budget_of(row), row["seed"]) for row in result["rows"]}
    for budget, seed, name in itertools.product(options.budgets, options.seeds, wanted):
        if (name, budget, seed) not in done:
            row = run(bench, name, budget, seed, options.official)
            result["rows"].append(row)
            write(options.out, result)
            print(json.dumps({key: value for key, value in row.items() if key not in ("group", "curve")}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
