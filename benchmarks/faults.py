"""Kills training runs with SIGKILL again and again, resumes each time, and compares with a run left alone, to the bit.

    python -m benchmarks.faults --memory 30 --mapped 10 --stored 10 --out benchmarks/results/faults.json

For each of the three ways to load data (decoded in memory; prepared and mapped; decoded into a store in the cache
directory) the same small run is made twice: once whole, once killed that many times. Kills come in turn

- `by the clock`: at a random moment after a random number of steps;
- `in a write`: the process kills itself where a file or directory has reached the disk and not yet taken its name;
- `in a phase`: at a random moment of an opening, a step, an evaluation, a sample sheet or a checkpoint.

The result says where each fell. In the end averaged weights, best weights, last weights, the optimizer's moments and
all metrics but the times must be those of the whole run, bit for bit (CPU, float32, one thread). Exits with 1 where
they are not, or a checkpoint was found damaged after a kill. A file of --out that is there already keeps what it has of
the loaders that are not run, so that the whole can be had in pieces. It forks, so it needs a system that can.
"""

from __future__ import annotations  # nothing else is imported here: worker processes import this module when they start

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

LOADERS = ("memory", "mapped", "stored")


def main() -> int:
    """Run the campaigns, print and write the result, and say whether it is good."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    for loader in LOADERS:
        parser.add_argument(f"--{loader}", type=int, default=0, help=f"kills of a run with the {loader} loader")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--keep", type=Path, help="an empty directory for the runs; a temporary one when not given")
    args = parser.parse_args()
    kills = {loader: getattr(args, loader) for loader in LOADERS if getattr(args, loader) > 0}
    if not kills:
        parser.error("expected a number of kills: --memory, --mapped, --stored")

    from benchmarks.killing import campaign, warm_up, write_images

    with tempfile.TemporaryDirectory() as temporary:
        place = args.keep or Path(temporary)
        write_images(place / "images")
        warm_up(place)
        results = {}
        for loader, count in kills.items():
            results[loader] = campaign(place, loader, count, args.seed)
            print(f"{loader}: {json.dumps(results[loader]['fell'])}, equal: {results[loader]['equal']}", flush=True)
    if args.out and args.out.exists():  # of the loaders that were not run now
        kept = json.loads(args.out.read_text())["loaders"]
        results = {loader: kept[loader] for loader in LOADERS if loader in kept} | results
    report = summary(results, args.seed)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    good = report["equal"] and report["checkpoints_sound_after_each_kill"]
    print(f"{report['kills']} kills: {'the same to the bit' if good else 'NOT THE SAME'}")
    return 0 if good else 1


def summary(results: dict[str, Any], seed: int) -> dict[str, Any]:
    """The whole result of some campaigns, by their loaders."""
    from benchmarks.killing import machine

    fell: Counter[str] = Counter()
    for result in results.values():
        fell.update(result["fell"])
    counts = " ".join(f"--{loader} {results[loader]['kills']}" for loader in LOADERS if loader in results)
    return {
        "what": __doc__.splitlines()[0],
        "command": f"python -m benchmarks.faults {counts} --seed {seed}",
        **machine(),
        "kills": sum(result["kills"] for result in results.values()),
        "fell": dict(sorted(fell.items())),
        "equal": all(all(result["equal"].values()) for result in results.values()),
        "checkpoints_sound_after_each_kill": all(result["sound"] for result in results.values()),
        "loaders": results,
    }


if __name__ == "__main__":
    sys.exit(main())
