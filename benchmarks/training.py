"""A training step beside the official one: the same weights, the same batch, in turn, against the matmul rate.

    python -m benchmarks.training --official DIR [--out FILE.json]

DIR is a clone of https://github.com/apple/ml-tarflow. Its step is that of its `train.py`: forward, `get_loss`,
backward, AdamW; on CUDA in bf16 autocast, through a gradient scaler. Ours is `TrainingStep`, as `tarflow train` takes
it, without clipping and averaging, which the official code does not do; the row "as trained" has both. Before any time
is taken the losses and the gradients are compared.

Every row of ours is timed against the official step, in turn, with a matmul before each, so that what else the machine
does falls on all three. Peak memory is that of a process of its own for each row: on the CPU the growth of its resident
memory from before the model is built, on CUDA the most that torch's allocator held. Only torch is needed, and no
installation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.memory import peak, reset_peak
from benchmarks.official import OFFICIAL, fingerprint
from benchmarks.rates import synchronise
from benchmarks.training_sides import ROWS, Job, Step, build, compare
from tarflow.config import TarFlowConfig, TrainingConfig
from tarflow.data.batches import batch_indices
from tarflow.model.condition import Classes
from tarflow.training.step import training_batch

WARM_UP = 3  # steps before the first that counts: moments are made in the first, compilation takes two


# --- measuring -------------------------------------------------------------------------------------------------------


def seconds_of(step: Step, device: torch.device, repeats: int = 1) -> float:
    """Seconds a step takes, from an idle device to an idle device."""
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def matmul(job: Job) -> tuple[Step, float]:
    """A large product in the precision of the step, and its floating-point operations."""
    size = 8192 if job.device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=job.device, dtype=torch.bfloat16 if job.bf16 else None) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


Pair = dict[str, list[float]]


def time_pair(job: Job, official: Step, name: str, rounds: int, until: float) -> Pair:
    """Seconds of the official step and of row `name`, in turn, and matmul rates (FLOP/s) from before each of them.

    At least two rounds, and then no more after the time `until`.
    """
    product, flops = matmul(job)
    repeats = 5 if job.device.type == "cuda" else 1  # several steps in flight, as in training
    step = build(job, name)
    for each in (product, official, step):
        seconds_of(each, job.device, WARM_UP)
    result: Pair = {OFFICIAL: [], name: [], "rates": []}
    for index in range(rounds):
        if index >= 2 and time.monotonic() > until:
            break
        for label, each in ((OFFICIAL, official), (name, step)):
            result["rates"].append(flops / seconds_of(product, job.device, repeats))
            result[label].append(seconds_of(each, job.device, repeats))
    return result


def peak_memory(job: Job, name: str) -> float:
    """MB that training needs at most in this process, by one row; nothing else may have run here."""
    if job.device.type == "cuda":
        step = build(job, name)
        torch.cuda.reset_peak_memory_stats(job.device)
        seconds_of(step, job.device, WARM_UP)
        return torch.cuda.max_memory_allocated(job.device) / 1e6
    seconds_of(matmul(job)[0], job.device, 2)  # what the libraries take for themselves
    before = reset_peak()
    seconds_of(build(job, name), job.device, WARM_UP)
    return (peak() - before) / 1e6


def peak_memory_apart(argv: Sequence[str], name: str) -> float:
    """`peak_memory` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", *argv, "--memory-of", name]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
    return float(done.stdout.strip().splitlines()[-1])


def data_share(job: Job) -> float:
    """Seconds that a step's batch takes to make, from uint8 images on the device: rows, flips, noise, labels."""
    height, width = job.model.image_shape
    count = 4096
    images = torch.randint(0, 256, (count, job.model.channels, height, width), dtype=torch.uint8).to(job.device)
    labels = (torch.arange(count) % max(1, job.model.num_classes)).to(job.device)
    config = TrainingConfig(batch_size=job.batch)
    steps = iter(range(10**9))

    def make() -> None:
        step = next(steps)
        rows = batch_indices(count, job.batch, step, 0, device=job.device)
        training_batch(
            images[rows],
            labels[rows],
            step,
            config=config,
            condition=Classes(10),
            measure=config.measure(256),
            flip=True,
        )

    seconds_of(make, job.device, 5)
    return min(seconds_of(make, job.device, 10) for _ in range(5))


# --- the command -----------------------------------------------------------------------------------------------------


def measure(job: Job, rows: Sequence[str], rounds: int, seconds: float, argv: Sequence[str]) -> dict[str, Any]:
    """Everything that is reported, as JSON can hold it. Times are in seconds, memory in MB, rates in GFLOP/s."""
    agreement = compare(job)
    if job.device.type == "cuda":
        torch.cuda.empty_cache()  # what follows are processes of their own
    memory = {name: peak_memory_apart(argv, name) for name in (OFFICIAL, *rows)}
    official = build(job, OFFICIAL)
    share = seconds / len(rows)
    pairs = {name: time_pair(job, official, name, rounds, time.monotonic() + share) for name in rows}
    rates = [rate for pair in pairs.values() for rate in pair["rates"]]
    rate = max(rates)
    table = {OFFICIAL: _row([t for pair in pairs.values() for t in pair[OFFICIAL]], memory[OFFICIAL], job, rate)}
    for name, pair in pairs.items():
        ratios = [ours / theirs for ours, theirs in zip(pair[name], pair[OFFICIAL], strict=True)]
        table[name] = _row(pair[name], memory[name], job, rate) | {
            "official_min": min(pair[OFFICIAL]),
            "min_over_official_min": min(pair[name]) / min(pair[OFFICIAL]),
            "median_of_ratios": statistics.median(ratios),
        }
    data = data_share(job)
    fastest = min(pairs[rows[0]][rows[0]])
    return {
        "device": device_name(job),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "official": fingerprint(OFFICIAL, job.clone),
        "model": f"{job.model.channels}x{'x'.join(map(str, job.model.image_shape))}, patch {job.model.patch_size}, "
        f"width {job.model.width}, layers {job.model.layers}, {job.model.num_classes} classes",
        "batch": job.batch,
        "precision": "bf16 autocast" if job.bf16 else "float32",
        "disagreement": agreement,
        "gflop_per_step": job.flops / 1e9,
        "matmul_gflops": {"best": rate / 1e9, "median": statistics.median(rates) / 1e9},
        "rows": table,
        "data": {"seconds": data, "share_of_step": data / fastest},
    }


def _row(times: list[float], memory: float, job: Job, rate: float) -> dict[str, Any]:
    low, middle = min(times), statistics.median(times)
    return {
        "min": low,
        "median": middle,
        "rounds": len(times),
        "images_per_second": job.batch / low,
        "share_of_matmul_rate": job.flops / low / rate,
        "peak_memory_mb": memory,
    }


def device_name(job: Job) -> str:
    """What is measured on, in words."""
    if job.device.type == "cuda":
        return torch.cuda.get_device_name(job.device)
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{job.device.type}, {name}, {torch.get_num_threads()} threads"


def as_text(result: dict[str, Any]) -> str:
    """The result as a table for a terminal."""
    rates = result["matmul_gflops"]
    lines = [
        f"{result['device']}; {result['model']}; batch {result['batch']}, {result['precision']}",
        f"{result['gflop_per_step']:.0f} GFLOP a step; matmul {rates['best']:.0f} GFLOP/s at best, "
        f"{rates['median']:.0f} in the middle",
        f"{'':28}{'min s':>9}{'median s':>10}{'of official':>13}{'of matmul':>11}{'peak MB':>10}",
    ]
    for name, row in result["rows"].items():
        ratio = f"{row['median_of_ratios']:.3f}" if "median_of_ratios" in row else ""
        lines.append(
            f"{name:28}{row['min']:9.3f}{row['median']:10.3f}{ratio:>13}{row['share_of_matmul_rate']:11.1%}"
            f"{row['peak_memory_mb']:10.0f}"
        )
    data = result["data"]
    lines.append(f"data: {data['seconds'] * 1e3:.2f} ms a batch, {data['share_of_step']:.2%} of the first row's step")
    return "\n".join(lines)


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; every shape of the model has its option."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--official", type=Path, required=True, help="clone of apple/ml-tarflow")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["auto", "float32", "bf16"], default="auto", help="auto: bf16 on CUDA")
    for name, default in (("image-size", 32), ("channels", 3), ("patch-size", 2), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("blocks", 4), ("layers", 4), ("classes", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--rounds", type=int, default=7, help="times that every row and the official step are timed")
    parser.add_argument("--seconds", type=float, default=240, help="time for all rounds, but two a row are taken")
    parser.add_argument("--rows", nargs="+", choices=ROWS, metavar="ROW", help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--memory-of", choices=[OFFICIAL, *ROWS], help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the JSON where asked. 0, or 2 after bad input."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = options(argv)
    device = torch.device(args.device)
    rows = args.rows or [name for name in ROWS if device.type == "cuda" or name != "ours, not compiled"]
    bf16 = args.precision == "bf16" or (args.precision == "auto" and device.type == "cuda")
    try:
        model = TarFlowConfig(
            image_size=args.image_size,
            channels=args.channels,
            patch_size=args.patch_size,
            width=args.width,
            layers=(args.layers,) * args.blocks,
            num_classes=args.classes,
            log_scale_bound=None,  # as the official code
        )
        for name in rows:
            TrainingConfig(**{"batch_size": args.batch, **ROWS[name]})
        job = Job(args.official, model, args.batch, device, bf16)
        if args.memory_of:
            sys.stdout.write(f"{peak_memory(job, args.memory_of)}\n")
            return 0
        result = measure(job, rows, args.rounds, args.seconds, argv)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"benchmarks.training: error: {error}\n")
        return 2
    sys.stdout.write(as_text(result) + "\n")
    if args.out:
        shown = ["DIR" if word == str(args.official) else word for word in argv]
        shown = [word for word in shown if word not in ("--out", str(args.out))]
        command = f"python -m benchmarks.training {shlex.join(shown)}"
        args.out.write_text(json.dumps({"command": command, **result}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
