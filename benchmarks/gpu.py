"""Everything that only a GPU can show, in one call of eight minutes: tests, sampling, training, and CIFAR-10.

    make gpu                                  # or python -m benchmarks.gpu, wherever torch and the source are
    python -m benchmarks.gpu --parts tests training
    python -m benchmarks.gpu --device cpu --quick

Each part is a process of its own with a time of its own, and what it found is written before the next one begins: a
call that is stopped loses the part that it was in. `make gpu-carry` puts what a bare machine lacks into one folder,
`gpu-carry/`: wheels (`wheels/*.whl`), the official model (`official/`), and training images
(`data/*.parquet`). A part whose input is missing says so, and counts as not done.

    tests     those marked `gpu`: the numbers of the CPU, graphs, feeds, memory against plan
    sampling  beside the official code, in float32 and in bf16, on weights on which Jacobi iteration needs 15 to 20
    training  a step beside the official one: time, memory, share of the rate of large products
    spline    the spline beside the affine transform: its operations, and those compiled
    cifar10   two runs of CIFAR-10 in the time that is left: bits/dim (uniform noise), and samples (gaussian noise)
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import tarflow
from benchmarks import ROOT
from tarflow import storage

CARRY = ROOT / "gpu-carry"
STAND_INS = ROOT / "tests" / "benchmarks" / "stand_ins"
TAIL = 2000  # characters of a part's output that are kept where it fails


@dataclass(frozen=True)
class Setting:
    """Where and how much.

    Attributes:
        device: "cuda" or "cpu". quick: the smallest sizes at which every part still runs. carry: the folder.
        place: for runs and the results of parts, gone afterwards. keep: where pictures are left.
    """

    device: str
    quick: bool
    carry: Path
    place: Path
    keep: Path

    @property
    def official(self) -> Path | None:
        """A folder with the official model, or with what stands in for it where it is only about running."""
        if self.quick:
            return STAND_INS
        return self.carry / "official" if (self.carry / "official").is_dir() else None


class Missing(Exception):
    """What a part needs is not here."""


def run(setting: Setting, seconds: float, *words: str, **environment: str) -> str:
    """The output of a Python process that ends within so many seconds; a RuntimeError says what went wrong."""
    path = [str(ROOT / "src"), str(ROOT), str(setting.place / "site"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"} | environment
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=ROOT
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        raise RuntimeError(f"not done after {seconds:.0f} s; {output[-TAIL:]}") from None
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}; {output[-TAIL:]}")
    return output


# --- the parts -------------------------------------------------------------------------------------------------------


def tests(setting: Setting, seconds: float) -> dict[str, Any]:
    """How many of the tests marked `gpu` passed, failed and were skipped, and what failed."""
    command = ["-m", "pytest", "-m", "gpu", "tests/test_gpu.py", "-q", "-p", "no:cacheprovider", "--tb=short"]
    try:
        output = run(setting, seconds, *command, TARFLOW_TEST_DEVICE=setting.device)
    except RuntimeError as error:
        output = str(error)
    last = output.strip().splitlines()[-1] if output.strip() else "nothing"
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|skipped)", last)}
    failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    found = {"passed": counts.get("passed", 0), "failed": failed, "skipped": counts.get("skipped", 0)}
    if failed or not found["passed"]:
        found["error"] = output[-2 * TAIL :]
    return found


def sampling(dtype: str, setting: Setting, seconds: float) -> dict[str, Any]:
    """`benchmarks.compare` on the model of the paper's ImageNet-64."""
    if setting.official is None:
        raise Missing(f"{setting.carry.name}/official: the official model")
    out = setting.place / f"sampling-{dtype}.json"
    model = ["--image-size", "64", "--width", "768", "--layers", *["8"] * 8, "--batches", "1", "64"]
    more = ["--weights", "hard", "--official-blocks", "1", "--reference-seconds", "0"]
    more += ["--pairs", "1", "--solvers", "auto"]
    if setting.quick:
        model = ["--image-size", "8", "--width", "64", "--layers", "1", "1", "--batches", "1", "2"]
        more = ["--pairs", "1", "--memory"]
    command = ["-m", "benchmarks.compare", "--official", str(setting.official), "--out", str(out), *model, *more]
    command += ["--device", setting.device, "--dtype", dtype, "--guidance", "0", "--growth"]
    command += ["--minutes", str(max(0.2, (seconds - 15) / 60))]
    try:
        run(setting, seconds, *command)
    except RuntimeError as error:
        if not out.exists():
            raise
        return {**json.loads(out.read_text()), "error": str(error)}
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def training(setting: Setting, seconds: float) -> dict[str, Any]:
    """`benchmarks.training` on the same model."""
    if setting.official is None:
        raise Missing(f"{setting.carry.name}/official: the official model")
    out = setting.place / "training.json"
    sizes = ["--image-size", "64", "--width", "768", "--blocks", "8", "--layers", "8", "--batch", "32"]
    more = ["--rounds", "3", "--seconds", str(0.3 * seconds), "--rows", "ours, as trained"]
    if setting.quick:
        sizes = ["--image-size", "8", "--width", "64", "--blocks", "2", "--layers", "1", "--batch", "4"]
        more = ["--rounds", "2", "--seconds", "2", "--rows", "ours"]
    command = ["-m", "benchmarks.training", "--official", str(setting.official), "--out", str(out), *sizes, *more]
    run(setting, seconds, *command, "--device", setting.device)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def spline(setting: Setting, seconds: float) -> dict[str, Any]:
    """`benchmarks.spline`: the spline beside the affine transform, its operations as they are and compiled."""
    out = setting.place / "spline.json"
    words = ["--turns", "5", "--batch", "128", "--only", "transform", "training step"]
    if setting.quick:
        words = ["--turns", "1", "--batch", "1", "--backend", "aot_eager", "--only", "transform"]
    command = ["-m", "benchmarks.spline", "--device", setting.device, "--threads", "1", "--out", str(out), *words]
    run(setting, seconds, *command)
    result: dict[str, Any] = json.loads(out.read_text())
    return {"measured": result["rows"]}


def cifar10(setting: Setting, seconds: float) -> dict[str, Any]:
    """A run for likelihoods and one for samples: the curve of each, what precision costs the first, and a picture."""
    source = setting.carry / "data"
    out, precision = setting.place / "runs.json", setting.place / "precision.json"
    options = ["--data", str(source), "--seconds", str(0.38 * seconds)]
    count, picture = "100", setting.keep / "gpu-cifar10.png"
    if setting.quick:
        options = ["--recipe", "digits", "--seconds", "1", "--pilot", "8"]
        count, picture = "4", setting.place / "quick.png"
    elif not source.is_dir():
        raise Missing(f"{setting.carry.name}/data: training images")
    device = ["--device", setting.device]
    run(setting, seconds, "-m", "benchmarks.timed_training", *options, *device, "--place", str(setting.place),
        "--out", str(out))  # fmt: skip
    found: dict[str, Any] = json.loads(out.read_text())
    words = [str(setting.place / "uniform"), "--images", "8" if setting.quick else "256", "--out", str(precision)]
    run(setting, seconds, "-m", "benchmarks.precision", *words, *device)
    found["precision"] = json.loads(precision.read_text())
    words = [str(setting.place / "gaussian"), "-n", count, "--guidance", "1", "--out", str(picture), *device]
    output = run(setting, seconds, "-m", "tarflow", "sample", *words)
    return found | {"samples": {"picture": picture.name, "said": output.strip().splitlines()[-1:]}}


Part = Callable[[Setting, float], dict[str, Any]]
PARTS: dict[str, tuple[Part, float]] = {  # and seconds, eight minutes in all
    "tests": (tests, 70),
    "sampling bf16": (lambda setting, seconds: sampling("bf16", setting, seconds), 120),
    "sampling float32": (lambda setting, seconds: sampling("float32", setting, seconds), 80),
    "training": (training, 60),
    "spline": (spline, 40),
    "cifar10": (cifar10, 110),
}


# --- the command -----------------------------------------------------------------------------------------------------


def measure(setting: Setting, names: Sequence[str], factor: float, argv: Sequence[str], out: Path) -> dict[str, Any]:
    """Every part in turn; `out` is written after each, and parts that it has of the same device stay in it."""
    earlier = json.loads(out.read_text()) if out.exists() else {}
    device = device_name(setting.device)
    origin = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *argv]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"tarflow": tarflow.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    parts = earlier["parts"] if earlier.get("device") == device else {}
    result: dict[str, Any] = {"benchmark": "gpu", "device": device, "parts": parts}

    def found_by(name: str) -> dict[str, Any]:
        part, seconds = PARTS[name]
        started = time.perf_counter()
        try:
            found = part(setting, factor * seconds)
        except Missing as error:
            found = {"missing": str(error)}
        except RuntimeError as error:
            found = {"error": str(error)}
        except Exception as error:  # the next part may still be worth its time
            found = {"error": f"{type(error).__name__}: {error}"}
        return origin | found | {"seconds": time.perf_counter() - started}

    # In small nothing is timed, and two at once are done sooner; else each has the machine for itself.
    with ThreadPoolExecutor(2 if setting.quick else 1) as pool:
        for name, found in zip(names, pool.map(found_by, names), strict=True):
            parts[name] = found
            storage.write_json(out, result)
            print(f"--- {name}, {found['seconds']:.0f} s", *lines(name, found), sep="\n", flush=True)
    return result


def device_name(device: str) -> str:
    """What is measured on."""
    if device == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def lines(name: str, found: dict[str, Any]) -> list[str]:
    """What a part found, for a terminal."""
    said = [f"  {kind}: {found[kind]}" for kind in ("missing", "error") if kind in found]
    if name == "tests":
        said.append(f"  {found.get('passed', 0)} passed, {found.get('skipped', 0)} skipped, {found.get('failed')}")
    for case in found.get("cases", []):
        for side, values in case["sides"].items():
            ratios = {other: f"{ratio['best']:.1f}" for other, ratio in values.get("faster_than", {}).items()}
            said.append(
                f"  batch {case['batch']}, {side}: {values['best']:.3f} s, first {values['first_call_seconds']:.3f} s, "
                f"{values.get('peak_bytes', 0) / 1e9:.2f} GB, {values['over_cached_loop_floor']:.1f} of the floor"
                f"{', times faster ' + str(ratios) if ratios else ''}, {values.get('solvers', '')}"
                f" {values.get('agreement', values.get('deviation', ''))}"
            )
    for row, values in found.get("rows", {}).items():
        said.append(
            f"  {row}: {values['min']:.3f} s, {values['share_of_matmul_rate']:.1%} of the matmul rate, "
            f"{values['peak_memory_mb']:.0f} MB, of the official step {values.get('median_of_ratios', 1):.3f}"
        )
    for row in found.get("measured", []):
        sides = ", ".join(f"{side} {times['milliseconds']} ms" for side, times in row["sides"].items())
        said.append(f"  {row['size']}, {row['what']}: {sides}")
    said += [f"  {kind}: {found[kind]}" for kind in ("uniform", "gaussian", "precision", "samples") if kind in found]
    return said


def options(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: does everything still run?")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--carry", type=Path, default=CARRY, help="what `make gpu-carry` made")
    parser.add_argument("--out", type=Path, help="JSON file; in benchmarks/results/ when not given")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts, shared as they share eight")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts. 0, or 1 where one failed, or 2 after bad input."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = options(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks.gpu: error: no CUDA device here; --device cpu --quick runs it all in small", file=sys.stderr)
        return 2
    kind = "quick" if args.quick else device_name(args.device).replace(" ", "-").lower()
    out = args.out or ROOT / "benchmarks" / "results" / f"gpu-{kind}.json"
    shown = [word for word in argv if word not in ("--out", str(args.out), "--carry", str(args.carry))]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        setting = Setting(args.device, args.quick, args.carry, Path(place), out.parent)
        for wheel in (args.carry / "wheels").glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(setting.place / "site")
        result = measure(setting, args.parts, args.minutes / 8, shown, out)
    print(f"{result['device']}: {out.name}")
    return 1 if any("error" in result["parts"][name] for name in args.parts) else 0


if __name__ == "__main__":
    sys.exit(main())
