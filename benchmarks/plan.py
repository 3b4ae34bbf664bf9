"""How far is `tarflow plan` off? Planned time and memory of a training step beside those of steps really taken.

    python -m benchmarks.plan [--out FILE.json] [--rounds 5] [--device cpu]

Each case is a model and a batch, trained by `TrainingStep` as `tarflow train` does it: clipping, averaged weights,
AdamW. Its plan is made with the rates of this machine, measured in the same run before and after the case; the better
ones count, as for the floors of `benchmarks.compare`. Steps are timed one by one, and best and median are kept. Peak
memory is twice measured, in a process of its own: what torch's allocator held at most, which is what the plan is
about, and on the CPU the growth of the process, which has fragments and buffers of libraries besides.

`share` is what the products of a step would take at the measured rate, over what a step took at best, less the update:
what `tarflow plan` has to assume of the CPU (`CPU_SHARE`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ROOT
from benchmarks.memory import peak, reset_peak
from benchmarks.training import device_name, matmul, seconds_of
from benchmarks.training_sides import Job, Step, our_flow, our_step
from tarflow.config import RunConfig, TarFlowConfig, TrainingConfig
from tarflow.planning.devices import Device, measured
from tarflow.planning.memory import training_memory
from tarflow.planning.plan import Plan, make_plan

WARM_UP = 2  # steps before the first that counts: the moments are made in the first
TRAINED: dict[str, Any] = {"clip_norm": 1.0, "ema_decay": 0.9999}
FREE: dict[str, Any] = {"log_scale_bound": None}  # as what was measured
SMALL = TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1,) * 6, num_classes=10, **FREE)  # recipe digits
MIDDLE = TarFlowConfig(32, channels=3, patch_size=2, width=256, layers=(2, 2), num_classes=10, **FREE)  # 255 tokens
WIDE = TarFlowConfig(32, channels=3, patch_size=4, width=512, layers=(2, 2), **FREE)  # 63 tokens
LEAST = "least"  # so small that it loads the code of a step, and nothing else
CASES: dict[str, tuple[TarFlowConfig, int, dict[str, Any]]] = {  # model, batch, fields of training
    "digits, batch 32": (SMALL, 32, {}),
    "width 256, batch 8": (MIDDLE, 8, {}),
    "width 256, batch 8, nothing recomputed": (MIDDLE, 8, {"checkpoint_activations": "nothing"}),
    "width 256, batch 8, layers recomputed": (MIDDLE, 8, {"checkpoint_activations": "layers"}),
    "width 256, batch 8, 2 micro-batches": (MIDDLE, 8, {"accumulate": 2}),
    "width 256, batch 16": (MIDDLE, 16, {}),
    "width 512, batch 16": (WIDE, 16, {}),
}
ALL = {**CASES, LEAST: (dataclasses.replace(SMALL, layers=(1,)), 2, {})}


def job_of(name: str, device: torch.device) -> Job:
    """The case as `benchmarks.training` knows it; no clone is needed."""
    model, batch, _ = ALL[name]
    return Job(Path(), model, batch, device, bf16=device.type == "cuda")


def step_of(name: str, device: torch.device) -> Step:
    """The training step of a case."""
    job = job_of(name, device)
    return our_step(job, our_flow(job), {**TRAINED, **ALL[name][2]})


def plan_of(name: str, device: Device) -> Plan:
    """The plan of a case."""
    model, batch, fields = ALL[name]
    precision = "float32" if device.name == "cpu" else "bf16"
    training = TrainingConfig(**{"steps": 1, "batch_size": batch, "precision": precision, **TRAINED, **fields})
    return make_plan(RunConfig(model, None, training), device)


def better(a: Device, b: Device) -> Device:
    """The same device at its best."""
    rates = {name: max(getattr(a, name), getattr(b, name)) for name in ("float32", "bf16", "bandwidth")}
    return dataclasses.replace(a, **rates)


def allocated(step: Step) -> int:
    """Bytes by which a step on the CPU raises what torch's allocator holds, at the most."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    held = highest = 0
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events = (event for event in found.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def peak_memory(name: str, device: torch.device) -> dict[str, int]:
    """Bytes of training at most, of tensors and of this process, in which nothing else may have run."""
    if device.type == "cuda":
        step = step_of(name, device)
        torch.cuda.reset_peak_memory_stats(device)
        seconds_of(step, device, WARM_UP)
        highest = torch.cuda.max_memory_allocated(device)
        return {"tensors": highest, "process": highest}
    for load in (matmul(job_of(name, device))[0], step_of(LEAST, device)):  # what the libraries take for themselves
        seconds_of(load, device, WARM_UP)
    del load
    before = reset_peak()
    step = step_of(name, device)
    seconds_of(step, device, WARM_UP)
    process = peak() - before
    memory = training_memory(ALL[name][0], images=1)  # of which weights, moments and averages are there before a step
    return {"tensors": memory.weights + memory.moments + memory.averaged + allocated(step), "process": process}


def peak_memory_apart(name: str, device: torch.device) -> dict[str, int]:
    """`peak_memory` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plan", "--device", device.type, "--memory-of", name]
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
    found: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measure(device: torch.device, rounds: int) -> dict[str, Any]:
    """Every case, as JSON can hold it. Seconds, bytes, FLOP."""
    machine = measured(device)
    times: dict[str, list[float]] = {}
    for name in CASES:
        step = step_of(name, device)
        seconds_of(step, device, WARM_UP)
        times[name] = [seconds_of(step, device) for _ in range(rounds)]
        machine = better(machine, measured(device))
    rows = {name: _row(plan_of(name, machine), times[name], peak_memory_apart(name, device)) for name in CASES}
    return {
        "device": device_name(job_of(next(iter(CASES)), device)),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "rates": {"float32": machine.float32, "bf16": machine.bf16, "bandwidth": machine.bandwidth},
        "assumed_share": machine.share,
        "median_share": statistics.median(row["share"] for row in rows.values()),
        "rows": rows,
    }


def _row(plan: Plan, times: list[float], memory: dict[str, int]) -> dict[str, Any]:
    best = min(times)
    full = plan.compute_seconds * plan.device.share  # of the products, at the whole rate
    return {
        "step_flops": plan.step_flops,
        "recomputed_flops": plan.recomputed_flops,
        "seconds": {"planned": plan.step_seconds, "best": best, "median": statistics.median(times)},
        "share": full / (best - plan.update_seconds),
        "planned_over_best": plan.step_seconds / best,
        "memory": {"planned": plan.memory.peak, **memory},
        "planned_over_tensors": plan.memory.peak / memory["tensors"],
    }


def as_text(result: dict[str, Any]) -> str:
    """The result as a table for a terminal."""
    lines = [
        f"{result['device']}; {result['rates']['float32'] / 1e9:.0f} GFLOP/s in float32, "
        f"of which {result['assumed_share']:.0%} is assumed",
        f"{'':40}{'planned s':>10}{'best s':>9}{'median':>9}{'ratio':>7}{'share':>7}"
        f"{'planned MB':>12}{'tensors':>9}{'ratio':>7}{'process':>9}",
    ]
    for name, row in result["rows"].items():
        seconds, memory = row["seconds"], row["memory"]
        lines.append(
            f"{name:40}{seconds['planned']:10.3f}{seconds['best']:9.3f}{seconds['median']:9.3f}"
            f"{row['planned_over_best']:7.2f}{row['share']:7.0%}{memory['planned'] / 1e6:12.0f}"
            f"{memory['tensors'] / 1e6:9.0f}{row['planned_over_tensors']:7.2f}{memory['process'] / 1e6:9.0f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write the JSON where asked."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each case that are timed")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--memory-of", choices=list(CASES), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds: expected a positive number, got {args.rounds}")
    device = torch.device(args.device)
    if args.memory_of:
        sys.stdout.write(json.dumps(peak_memory(args.memory_of, device)) + "\n")
        return 0
    result = measure(device, args.rounds)
    sys.stdout.write(as_text(result) + "\n")
    if args.out:
        command = f"python -m benchmarks.plan --rounds {args.rounds} --device {args.device}"
        args.out.write_text(json.dumps({"command": command, **result}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
