"""Sampling against the official code, with the same weights and the same noise, in one run: times, memory, floors.

    python -m benchmarks.compare --official DIR [--gs-jacobi DIR] [--weights RUN] [--out FILE.json]

from the root of the repository. benchmarks/README.md says what is measured and how to read it. The exit code is 0, 1
where results did not agree, or 2 after bad input.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import tarflow
from benchmarks import models, official, rates, table
from benchmarks.floor import Work, arithmetic_floor, loop_floor
from benchmarks.options import check_against, command, parse
from benchmarks.sampling import DTYPES, Subject, disagreements, measure, prepare
from benchmarks.timing import Budget
from tarflow import storage
from tarflow.config import TarFlowConfig, to_dict
from tarflow.devices import pick_device


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the tables, write the JSON."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        result = run(argv)
    except (ValueError, OSError, tarflow.SamplingError) as error:
        if os.environ.get("TARFLOW_DEBUG"):
            raise
        print(f"benchmarks.compare: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table.render(result))
    return 1 if result["disagreements"] else 0


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Everything that `argv` asks for, as one JSON object; written to --out after each case, too."""
    options = parse(argv)
    device = pick_device(options.device)
    torch.set_num_threads(options.threads)
    clones = {official.OFFICIAL: options.official}
    if options.gs_jacobi is not None:
        clones[official.GS_JACOBI] = options.gs_jacobi
    loaded = {code: official.load_module(code, clone) for code, clone in clones.items()}
    budget = Budget(options.minutes)
    _say(f"weights: {options.weights if options.weights in models.MADE else 'given'}")
    flow = models.open_flow(options.weights, options.config, device)
    check_against(options, flow.config)
    for scale in options.guidance:  # before an hour of timings, not after
        y = models.labels(flow.config, 2, device)
        tarflow.Guidance(scale, temperature=options.temperature).check(y, flow.conditions, flow.sequence.tokens)
    subject = _subject(flow, loaded, clones, options, max(options.batches))
    result = _header(argv, options, flow, clones, device)
    for batch in options.batches:
        for scale in options.guidance:
            _case(result, "cases", subject, options, batch, scale, options.pairs, budget)
    if options.growth:
        del subject, flow  # the memory is for the larger ones
    for tokens in options.growth:
        if not budget.allows():
            result["skipped"].append(f"growth: {tokens} patches")
            continue
        config = _grown(result["config"], options, tokens)
        _say(f"growth: {tokens} patches, {options.growth_weights} weights")
        grown = models.open_flow(options.growth_weights, config, device)
        subject = _subject(grown, loaded, clones, options, max(options.growth_batches))
        for batch in options.growth_batches:
            _case(result, "growth", subject, options, batch, 0.0, options.growth_pairs, budget)
    result["rates"] |= {"by layer": _layer_rates(options, result["config"], device)}
    _finish(result, options.out)
    return result


def _subject(
    flow: tarflow.TarFlow,
    loaded: dict[str, ModuleType],
    clones: dict[str, Path],
    options: argparse.Namespace,
    images: int,
) -> Subject:
    blocks = options.official_blocks or len(flow.blocks)
    return prepare(flow, loaded, clones, options.dtype, blocks, max(images, options.reference_images))


def _case(
    result: dict[str, Any],
    kind: str,
    subject: Subject,
    options: argparse.Namespace,
    batch: int,
    scale: float,
    pairs: int,
    budget: Budget,
) -> None:
    """Measure one case, note it, and write what there is: a run that is stopped leaves what it has done."""
    what = f"{kind}: {subject.flow.config.num_patches} patches, batch {batch}, guidance {scale:g}"
    if not budget.allows():
        result["skipped"].append(what)
        return
    _say(what)
    settings = options.settings if kind == "cases" else dataclasses.replace(options.settings, memory=())
    case = measure(subject, settings, batch, scale, pairs, budget)
    result[kind].append(case)
    result["disagreements"] += [f"{kind}, {line}" for line in disagreements(case)]
    _finish(result, options.out)


def _grown(config: dict[str, Any], options: argparse.Namespace, tokens: int) -> TarFlowConfig:
    """The model with `tokens` patches in a square, and with the layers that were asked for."""
    side = round(tokens**0.5) * config["patch_size"]
    layers = options.growth_layers or config["layers"]
    return TarFlowConfig(**config | {"image_size": side, "layers": tuple(layers)})


def _header(
    argv: Sequence[str],
    options: argparse.Namespace,
    flow: tarflow.TarFlow,
    clones: dict[str, Path],
    device: torch.device,
) -> dict[str, Any]:
    """What was run on what, and no path of the machine."""
    return {
        "benchmark": "sampling",
        "command": command(argv),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "note": options.note,
        "device": {
            "kind": device.type,
            "name": _device_name(device),
            "threads": options.threads,
            "cores": os.cpu_count(),
        },
        "versions": {"tarflow": tarflow.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "others": {code: official.fingerprint(code, clone) for code, clone in clones.items()},
        "config": to_dict(flow.config),
        "parameters": sum(p.numel() for p in flow.parameters()),
        "weights": options.weights if options.weights in models.MADE else "given",
        "dtype": options.dtype,
        "official_blocks": options.official_blocks,
        "gs_jacobi": vars(options.settings.gs_jacobi) if official.GS_JACOBI in clones else None,
        "rates": {"squares": rates.square_rates(DTYPES[options.dtype], device)},
        "cases": [],
        "growth": [],
        "growth_weights": options.growth_weights,
        "skipped": [],
        "disagreements": [],
    }


def _layer_rates(options: argparse.Namespace, config: dict[str, Any], device: torch.device) -> dict[str, float]:
    found: dict[str, float] = {}
    for rows in sorted({batch * (2 if scale else 1) for batch in options.batches for scale in options.guidance}):
        found |= rates.layer_rates(TarFlowConfig(**config), rows, DTYPES[options.dtype], device)
    return found


def _finish(result: dict[str, Any], out: Path | None) -> None:
    """Fill in what needs the best rates of the whole run: floors, and how far from them each side is. Then write."""
    every = [*result["cases"], *result["growth"]]
    flops = max([*result["rates"]["squares"].values(), *(case["rates"]["flops_per_second"] for case in every)])
    result["rates"]["flops_per_second"] = flops
    reads = [
        (case["work"][f"{kind}_set"], case["rates"][f"{kind}_bytes_per_second"])
        for case in every
        for kind in ("weight", "cache")
    ]

    def read_rate(working_set: int) -> float:
        """The best that was seen on a working set of this size or a larger one: a smaller one is no slower."""
        return max(rate for size, rate in reads if size >= working_set)

    for case in every:
        work = Work(**case["work"])
        arithmetic = arithmetic_floor(work, flops)
        loop = loop_floor(work, flops, read_rate(work.weight_set), read_rate(work.cache_set))
        case["floors"] = {"arithmetic_seconds": arithmetic, "cached_loop_seconds": loop}
        sides = case["sides"]
        for name, side in sides.items():
            side["over_arithmetic_floor"] = side["best"] / arithmetic
            side["over_cached_loop_floor"] = side["best"] / loop
            side["faster_than"] = {
                other: {"best": sides[other]["best"] / side["best"], "median": sides[other]["median"] / side["median"]}
                for other in result["others"]
                if name not in result["others"]
            }
    if out is not None:
        storage.write_json(out, result)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
