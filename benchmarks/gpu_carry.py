"""What a bare GPU machine lacks, in one folder of under 60 MiB: wheels, the official model, training images.

    make gpu-carry OFFICIAL=../ml-tarflow IMAGES=cifar10/train-00000-of-00002.parquet

The wheels are those of Python 3.12 that a machine with torch, NumPy, Pillow, safetensors, pyarrow, scikit-learn, rich
and pytest still lacks. What is not at hand is left out, and `benchmarks.gpu` says so where it misses it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu import CARRY
from benchmarks.official import FILES, OFFICIAL

WHEELS = ("tyro", "docstring-parser", "typeguard")
LIMIT = 60 << 20  # bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the folder. 0, or 2 where it became too large or something named is not there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_carry", description=__doc__)
    parser.add_argument("--official", type=Path, help="a clone of apple/ml-tarflow")
    parser.add_argument("--images", type=Path, help="a Parquet file of training images")
    parser.add_argument("--carry", type=Path, default=CARRY, help="the folder; it is made anew")
    args = parser.parse_args(argv)
    sources = [args.official / FILES[OFFICIAL]] if args.official else []
    for path in [*sources, *([args.images] if args.images else [])]:
        if not path.is_file():
            print(f"benchmarks.gpu_carry: error: {path}: no such file", file=sys.stderr)
            return 2
    shutil.rmtree(args.carry, ignore_errors=True)
    for name in ("wheels", "official", "data"):
        (args.carry / name).mkdir(parents=True)
    pins = ["-c", str(ROOT / "constraints.txt")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *pins]
    command += ["--python-version", "3.12", "--dest", str(args.carry / "wheels"), *WHEELS]
    subprocess.run(command, check=True)
    for path in sources:
        shutil.copy(path, args.carry / "official")
    if args.images:
        shutil.copy(args.images, args.carry / "data" / "train.parquet")
    for name in ("official", "data"):
        if not any((args.carry / name).iterdir()):
            (args.carry / name).rmdir()
    size = sum(path.stat().st_size for path in args.carry.rglob("*") if path.is_file())
    print(f"{args.carry.name}: {size / 2**20:.1f} MiB, {', '.join(sorted(p.name for p in args.carry.iterdir()))}")
    return 0 if size <= LIMIT else 2


if __name__ == "__main__":
    sys.exit(main())
