"""Is this tree slower, or larger, than another one? Both in one run, in turn, by what a user calls.

    git worktree add ../before COMMIT
    python -m benchmarks.before --before ../before --out benchmarks/results/before-cpu.json

Each side is a process of its own for every measurement, with the same interpreter and with `src/` of its tree in front.
What is called has the same name on both sides, so that the script runs on either of them:

- `train digits`, `train cifar10`: `tarflow train`, some steps of a recipe on images that are made for it;
- `sample`: `tarflow.sample` with each solver, with and without guidance, in batches of 1 and of 64;
- `log_prob`, `denoise`: 256 images;
- `evaluate`, `score`: the commands on a run and its images;
- `import`: `tarflow --help`.

Every measurement is made `--pairs` times on each side. Reported are the medians of seconds and of the peak of the
resident memory, and the median of the ratios pair by pair, this tree over the other. A ratio below 1 is a gain. `--out`
is written after each measurement; with `--only` the others in it stay.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# A flow like that of the recipe `cifar10`, smaller; its output layers are random, for at zero a flow is constant.
FLOW = """
import time, torch, tarflow
torch.manual_seed(0)
config = tarflow.TarFlowConfig(32, channels=3, patch_size=4, width=192, layers=(3, 3, 3, 3), num_classes=10)
flow = tarflow.TarFlow(config).eval()
for block in flow.blocks:
    torch.nn.init.normal_(block.proj_out.weight, std=0.01)
y = torch.arange(64) % 10
x = torch.rand(256, 3, 32, 32) * 2 - 1
def clock(run, times):
    run()
    start = time.perf_counter()
    for _ in range(times):
        run()
    print("SECONDS", (time.perf_counter() - start) / times)
"""
CALLS = {
    "sample, sequential, 1": 'clock(lambda: tarflow.sample(flow, 1, y[:1], solver="sequential"), 5)',
    "sample, sequential, 64": 'clock(lambda: tarflow.sample(flow, 64, y, solver="sequential"), 2)',
    "sample, guided, 64": (
        'clock(lambda: tarflow.sample(flow, 64, y, guidance=tarflow.Guidance(2.0), solver="sequential"), 1)'
    ),
    "sample, jacobi, 1": 'clock(lambda: tarflow.sample(flow, 1, y[:1], solver="jacobi"), 5)',
    "sample, jacobi, 64": 'clock(lambda: tarflow.sample(flow, 64, y, solver="jacobi"), 2)',
    "sample, auto, 16": "clock(lambda: tarflow.sample(flow, 16, y[:16]), 4)",
    "log_prob, 256": "with torch.no_grad(): clock(lambda: flow.log_prob(x), 3)",
    "denoise, 64": "clock(lambda: tarflow.denoise(flow, x[:64], 0.05), 2)",
}


def run(tree: Path, arguments: list[str], env: dict[str, str], cwd: Path) -> tuple[float, float, str]:
    """Seconds, the peak of the resident memory in MB, and the standard output of one process of one side."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **env, "PYTHONPATH": str(tree / "src"), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    output = process.stdout.read()
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments[:4])} of {tree.name} failed:\n{errors[-2000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024, output


def call(tree: Path, body: str, threads: int, cwd: Path) -> tuple[float, float]:
    """Seconds that the code itself clocked, and the peak of memory in MB."""
    program = f"{FLOW}\ntorch.set_num_threads({threads})\n{body}\n"
    _, peak, output = run(tree, ["-c", program], {"OMP_NUM_THREADS": str(threads)}, cwd)
    line = next(line for line in output.splitlines() if line.startswith("SECONDS"))
    return float(line.split()[1]), peak


def command(tree: Path, arguments: list[str], threads: int, cwd: Path) -> tuple[float, float]:
    """Seconds and the peak of memory in MB of one `tarflow` command."""
    seconds, peak, _ = run(tree, ["-m", "tarflow", *arguments], {"OMP_NUM_THREADS": str(threads)}, cwd)
    return seconds, peak


def colours(path: Path, count: int) -> None:
    """An npz file of `count` images (3, 32, 32) in ten classes, smooth, so that a step of training is a usual one."""
    import numpy as np

    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 255, (count, 3, 2, 2))
    ramp = np.linspace(0, 1, 32)
    rows = corners[..., 0, :][..., None, :] * (1 - ramp)[:, None] + corners[..., 1, :][..., None, :] * ramp[:, None]
    pixels = rows[..., 0][..., None] * (1 - ramp) + rows[..., 1][..., None] * ramp
    labels = np.arange(count) % 10
    np.savez(path, images=pixels.astype(np.uint8).transpose(0, 2, 3, 1), labels=labels)


def measure(
    sides: dict[str, Path], pairs: int, threads: int, work: Path, only: str | None, keep: Callable[[str, Any], None]
) -> None:
    """All measurements, each side in turn; `keep` gets the name and the row of each."""
    colours(work / "colours.npz", 2_000)
    digits = ["train", "--recipe", "digits", "--steps", "60"]
    cifar = ["train", "--recipe", "cifar10", "--data", str(work / "colours.npz"), "--steps", "4", "--batch-size", "16"]
    trained = {name: work / f"run-{name}" for name in sides}
    for name, tree in sides.items():
        command(tree, [*digits, "--out", str(trained[name])], threads, work)

    def pair(what: str, of: Any) -> None:
        if only and only not in what:
            return
        values: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(pairs):
            for name in sides if turn % 2 == 0 else reversed(sides):
                values[name].append(of(name, sides[name], turn))
        now, before = values["now"], values["before"]
        row = {
            "seconds": {name: statistics.median(seconds for seconds, _ in values[name]) for name in sides},
            "peak_mb": {name: statistics.median(peak for _, peak in values[name]) for name in sides},
            "ratio": statistics.median(a / b for (a, _), (b, _) in zip(now, before, strict=True)),
            "memory_ratio": statistics.median(a / b for (_, a), (_, b) in zip(now, before, strict=True)),
            "all_seconds": {name: [round(seconds, 4) for seconds, _ in values[name]] for name in sides},
        }
        keep(what, row)
        print(f"{what:<24} {row['ratio']:6.3f} of the time, {row['memory_ratio']:6.3f} of the memory", flush=True)

    def training(arguments: list[str]) -> Any:
        return lambda name, tree, turn: command(
            tree, [*arguments, "--out", str(work / f"{name}-{arguments[2]}-{turn}")], threads, work
        )

    def on_run(arguments: list[str]) -> Any:
        return lambda name, tree, turn: command(
            tree,
            [arguments[0], str(trained[name]), *(a.format(work=work, name=name, turn=turn) for a in arguments[1:])],
            threads,
            work,
        )

    pair("import", lambda name, tree, turn: command(tree, ["--help"], threads, work))
    for what, body in CALLS.items():
        pair(what, lambda name, tree, turn, body=body: call(tree, body, threads, work))
    pair("train digits", training(digits))
    pair("train cifar10", training([*cifar]))
    pair("evaluate digits", on_run(["evaluate"]))
    pair("score digits", on_run(["score", "digits", "--out", "{work}/{name}-{turn}.csv"]))


def main() -> None:
    """Measure, print a line for each measurement, and write all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other tree: a directory with src/tarflow")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="measurements whose name holds this")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not (options.before / "src" / "tarflow").is_dir():
        parser.error(f"--before: expected a directory with src/tarflow, got {options.before}")
    sides = {"now": ROOT, "before": options.before.resolve()}
    commits = {
        name: subprocess.run(
            ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        for name, tree in sides.items()
    }
    about = {
        "command": f"python -m benchmarks.before --before DIR --pairs {options.pairs}",
        "commits": commits,
        "device": f"{platform.processor() or platform.machine()}, {options.threads} thread",
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }
    known = options.out is not None and options.out.exists()
    measurements = json.loads(options.out.read_text(encoding="utf-8"))["measurements"] if known else {}

    def keep(what: str, row: Any) -> None:
        measurements[what] = row
        if options.out:
            text = json.dumps({**about, "measurements": measurements}, indent=1)
            options.out.write_text(text + "\n", encoding="utf-8")

    with tempfile.TemporaryDirectory() as work:
        measure(sides, options.pairs, options.threads, Path(work), options.only, keep)


if __name__ == "__main__":
    main()
