"""Samples of a recipe beside the baseline's: the same time of training, the same number of samples, the same judge.

    python -m benchmarks.recipe_samples --set fashion-mnist --variants baseline 'muon 2e-3' --out FILE.json

Each variant of `benchmarks.ablations` is trained with Gaussian noise, or that of `--noise`, for what the baseline's
steps cost. Guidance is then chosen among `--scales`, for each training by itself, by the Fréchet distance of `--choose`
samples; `-n` others are drawn with it, denoised where the noise was Gaussian, and measured against training images, by
features of EffNetLite0 unless told otherwise, and so are as many held-out images (`floor`). `--sheets DIR` writes the
first samples of the first seed at the first budget, a column a class.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench import Bench, budget_of, describe, open_bench, parser_of, read, write
from benchmarks.variants import BASELINE, VARIANTS, together
from tarflow.evaluation.quality.extractors import open_extractor
from tarflow.evaluation.quality.judge import Judge
from tarflow.evaluation.quality.reference import open_reference
from tarflow.evaluation.quality.sweep import best_row, grid, sweep
from tarflow.measure import NOISES, Measure, to_8bit
from tarflow.model.flow import TarFlow
from tarflow.pictures import save_sheet
from tarflow.sampling.sample import sample
from tarflow.sampling.setting import Setting

NOISE_STD = 0.1
SHEET_ROWS = 6


def measure_of(noise: str, levels: int) -> Measure:
    """What flows trained with a noise see."""
    return Measure(levels, noise, NOISE_STD if NOISES[noise].has_std else 0.0)


def draw(flow: TarFlow, setting: Setting, n: int, seed: int, measure: Measure) -> Tensor:
    """Samples as pixels, the classes in turn."""
    y = torch.arange(n) % flow.config.num_classes
    x = sample(flow, n, y, guidance=setting.guidance, seed=seed, denoise=setting.denoise, solver="sequential")
    return measure.pixels(x)


def run(bench: Bench, judge: Judge, name: str, budget: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: a variant trained for one budget at one seed."""
    variant = together(name.split("+"))
    cost = bench.cost(variant, seed)
    steps = round(bench.steps * budget / cost)
    levels = bench.splits.train.levels
    measure = measure_of(options.noise, levels)
    trained = bench.train(variant, steps, seed, noise=options.noise, noise_std=measure.noise_std)
    flow = trained.flow.eval().requires_grad_(False)
    settings = grid(flow.config, measure.noise_std or None, scales=options.scales)
    rows = sweep(settings, lambda s, k: draw(flow, s, options.choose, k, measure), judge, levels, seed=1000)
    row: dict[str, Any] = {"variant": name, "noise": options.noise, "budget": budget, "seed": seed}
    row |= {"cost": cost, "steps": steps}
    if not any(each.figures for each in rows):  # weights that blew up
        return row | {"setting": None, "failed": rows[0].failed, "figures": {}}
    setting = best_row(rows, judge).setting
    pixels = draw(flow, setting, options.n, seed, measure)
    figures = judge.figures(pixels, levels)
    if options.sheets is not None and (budget, seed) == (options.budgets[0], options.seeds[0]):
        options.sheets.mkdir(parents=True, exist_ok=True)
        classes = flow.config.num_classes
        kind = "baseline" if name == BASELINE else "best"
        save_sheet(
            options.sheets / f"{kind}-{options.set}.png",
            to_8bit(pixels[: SHEET_ROWS * classes], levels),
            columns=classes,
        )
    distance = judge.extractor.figure("FD")
    return row | {
        "setting": str(setting),
        "chosen_among": [[str(each.setting), each.figures[distance].value] for each in rows if each.figures],
        "figures": {kind: figure.to_dict() for kind, figure in figures.items()},
    }


def main(argv: Sequence[str]) -> int:
    """Run what is not in the file yet; 2 after bad input, with one line."""
    parser = parser_of("recipe_samples")
    parser.add_argument("--variants", nargs="+", required=True, help="as of benchmarks.ablations, of what can sample")
    parser.add_argument("--noise", choices=NOISES, default="gaussian", help="that flows are trained with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--extractor", choices=("efficientnet", "classifier"), default="efficientnet")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0])
    parser.add_argument("-n", type=int, default=2000, help="samples that are measured")
    parser.add_argument("--choose", type=int, default=500, help="samples that the guidance is chosen by")
    parser.add_argument("--reference", type=int, default=5000, help="training and held-out images, each at most")
    parser.add_argument("--cache", type=Path, help="where features of real images are kept")
    parser.add_argument("--sheets", type=Path, metavar="DIR")
    options = parser.parse_args(argv)
    try:
        for name in options.variants:
            unknown = [part for part in name.split("+") if part not in VARIANTS or VARIANTS[part].parts]
            if unknown:
                raise ValueError(
                    f"--variants: expected names of benchmarks.variants that can sample, got {unknown[0]!r}"
                )
        bench = open_bench(options)
        extractor = open_extractor(options.extractor, options.device, images=bench.splits.train, cache=options.cache)
        reference = open_reference(bench.splits, extractor, options.cache, limit=options.reference)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    judge = Judge(extractor, reference)
    result = read(options.out) or describe(bench, options) | {"noise_std": NOISE_STD}
    done = {(row["variant"], row.get("noise", "gaussian"), budget_of(row), row["seed"]) for row in result["rows"]}
    for budget, seed, name in itertools.product(options.budgets, options.seeds, options.variants):
        if (name, options.noise, budget, seed) in done:
            continue
        row = run(bench, judge, name, budget, seed, options)
        result["rows"].append(row)
        write(options.out, result)
        print(
            json.dumps({key: row[key] for key in ("variant", "noise", "budget", "seed", "steps", "setting")}),
            flush=True,
        )
        print({kind: round(value["value"], 4) for kind, value in row["figures"].items()}, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
