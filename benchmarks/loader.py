"""Does the data keep up? Images a second of the loader alone against the training step, and memory over an epoch.

    python -m benchmarks.loader --out benchmarks/results/loader-cpu.json
    python -m benchmarks.loader --data PATH_OF_CIFAR10 --out benchmarks/results/loader-cpu.json

Makes Parquet shards of PNG files, 100,000 images of 32x32 and fewer of 8x8 and 64x64: those of --data, again and again,
each time moved by another number of pixels; without --data, the embedded digits tiled. Then it measures, in turn,

- `memory`: in a fresh process, `prepare` makes the store of the 100,000 images, and an epoch goes through its map; the
  resident memory of the process all along;
- `loaders`: the batches of each set, mapped from its store and in memory;
- `steps`: the training step of the recipes `digits`, `cifar10` and `default`, of 64x64 (fewer images at a time than
  their own, as written down with them: a step of 256 takes minutes on a CPU).

Rounds are interleaved; of each number the median and the best are kept. Exits with 1 where memory is not flat within
10 %, or a loader is slower than the step.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tarflow import __version__, recipes
from tarflow.data.feed import Feed
from tarflow.data.images import from_array
from tarflow.data.load import load
from tarflow.data.options import LoadOptions
from tarflow.data.sets import ImageSet
from tarflow.data.store.write import prepare
from tarflow.training.directory import RunDirectory
from tarflow.training.engine import Engine
from tarflow.training.setup import resolve
from tarflow.training.trainer import Trainer

SHARD, GROUP = 10_000, 1_000  # images a file, and a row group
SIDE = {"digits": 8, "cifar10": 32, "default": 64}  # pixels, of the images of a recipe
STEP_BATCH = {"digits": 32, "cifar10": 8, "default": 4}
LOADER_BATCH = {"digits": 32, "cifar10": 256, "default": 64}
FLAT = 0.10


def pictures(data: str | None, side: int, count: int) -> Iterator[tuple[Any, int]]:
    """`count` images (C, side, side) uint8 with their labels."""
    if data is not None:
        images = load(data, image_size=side, channels=3).train
        pixels, labels = images.images.numpy(), images.labels
        for k in range(count):
            row, times = k % len(pixels), k // len(pixels)
            label = 0 if labels is None else int(labels[row])
            yield np.roll(pixels[row], (times, times), axis=(1, 2)), label
        return
    digits = load("digits", levels=256).train.images.numpy()[:, 0]
    generator, across = np.random.default_rng(0), side // 8
    for _ in range(count):
        rows = generator.integers(0, len(digits), (across, across))
        tiled = digits[rows].transpose(0, 2, 1, 3).reshape(1, side, side)
        yield tiled, int(rows[0, 0] % 10)


def write_shards(folder: Path, images: Iterator[tuple[Any, int]], held_out: int) -> None:
    """Parquet files in the layout of `datasets`: the first `held_out` images as the test split, the others to train."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    number = 0

    def flush(name: str) -> None:
        table = pa.table({"image": pa.array(rows["image"], pa.binary()), "label": rows["label"]})
        pq.write_table(table, folder / name, row_group_size=GROUP, compression="none")
        for column in rows.values():
            column.clear()

    for k, (pixels, label) in enumerate(images):
        buffer = io.BytesIO()
        from_array(pixels).save(buffer, "PNG", compress_level=1)
        rows["image"].append(buffer.getvalue())
        rows["label"].append(label)
        if k + 1 == held_out:
            flush("test-00000.parquet")
        elif len(rows["image"]) == SHARD:
            flush(f"train-{number:05}.parquet")
            number += 1
    if rows["image"]:
        flush(f"train-{number:05}.parquet")


def resident() -> int:
    """Bytes of memory of this process, without pages of files that the system may drop."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status: no line RssAnon")


def memory_of_a_set(shards: Path, store: Path) -> dict[str, Any]:
    """Resident memory while a store is made, at most, and in twenty parts of an epoch over its map.

    The first part, in which everything is allocated, is not counted. For a fresh process: one that has already freed
    memory could hide growth in it.
    """
    before, making = resident(), list[int]()
    prepare(str(shards), store, LoadOptions(), progress=lambda what, done, total: making.append(resident()))
    images = load(str(store)).train
    feed = Feed(images, batch_size=256, seed=0, labelled=True)
    steps, samples, part = len(images) // 256, [], []
    for step in range(steps):
        feed.batch(step)
        part.append(resident())
        if (step + 1) % max(1, steps // 20) == 0:
            samples.append(max(part))
            part.clear()
    feed.close()
    counted = samples[1:]
    spread = max(counted) / min(counted) - 1
    return {
        "images": len(images),
        "before_mb": round(before / 1e6, 1),
        "peak_mb_while_the_store_is_made": round(max(making) / 1e6, 1),
        "peak_mb_of_each_twentieth": [round(sample / 1e6, 1) for sample in samples],
        "spread": round(spread, 4),
        "flat_within_10_percent": spread <= FLAT,
        "encoded_set_mb": round(sum(file.stat().st_size for file in shards.iterdir()) / 1e6, 1),
        "decoded_set_mb": round(len(images) * int(np.prod(images.image_shape)) / 1e6, 1),
    }


class Timed:
    """A thing that makes `images` a call, and its rates."""

    def __init__(self, images: int, call: Callable[[], Any]) -> None:
        self.images, self.call, self.rates = images, call, list[float]()
        call()

    def round(self, seconds: float) -> None:
        calls, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds or not calls:
            self.call()
            calls += 1
        self.rates.append(calls * self.images / passed)

    def summary(self) -> dict[str, Any]:
        return {
            "images_per_second": round(statistics.median(self.rates), 1),
            "best": round(max(self.rates), 1),
            "rounds": len(self.rates),
        }


def loader(images: ImageSet, batch_size: int) -> Timed:
    """The batches alone, one step after the other."""
    feed = Feed(images, batch_size=batch_size, seed=0, labelled=True)
    steps = iter(range(10**9))
    return Timed(batch_size, lambda: feed.batch(next(steps)))


def step(recipe: str, source: str, folder: Path) -> Timed:
    """The training step of a recipe, on images from memory."""
    sections = recipes.load(recipe)
    batch = STEP_BATCH[recipe]
    sections["training"] |= {"batch_size": batch}
    sections["data"] |= {"source": source}
    splits = load(source, held_out_fraction=0.2)
    config = resolve(sections, splits)
    assert config.training is not None
    engine = Engine(config.training, torch.device("cpu"))
    trainer = Trainer(config, splits, RunDirectory(folder), engine, lambda metrics: None, None)
    return Timed(batch, trainer.take_step)


def main() -> int:
    """Measure, write the result, and say whether it is good."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a set of 32x32 images, such as CIFAR-10; the embedded digits when not given")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement in each round")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        counts = {"digits": args.images // 10, "cifar10": args.images, "default": args.images // 10}
        for recipe, count in counts.items():
            held_out = max(10, count // 100)
            write_shards(place / recipe, pictures(args.data, SIDE[recipe], count + held_out), held_out)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            memory = fresh.submit(memory_of_a_set, place / "cifar10", place / "cifar10-store").result()
        print(json.dumps(memory), file=sys.stderr)
        timed = {}
        for recipe in counts:
            store = place / f"{recipe}-store"
            prepare(str(place / recipe), store, LoadOptions())  # that of the 100,000 images is there already
            timed[f"{recipe} step"] = step(recipe, str(store), place / f"{recipe}-run")
            timed[f"{recipe} mapped"] = loader(load(str(store)).train, LOADER_BATCH[recipe])
            timed[f"{recipe} in memory"] = loader(load(str(place / recipe)).train, LOADER_BATCH[recipe])
        for _ in range(args.rounds):
            for entry in timed.values():
                entry.round(args.seconds)
    results = {name: entry.summary() for name, entry in timed.items()}
    rates = {name: result["images_per_second"] for name, result in results.items()}
    over = {n: round(rates[n] / rates[f"{n.split()[0]} step"], 2) for n in rates if "step" not in n}
    good = memory["flat_within_10_percent"] and min(over.values()) > 1
    report = {
        "command": f"python -m benchmarks.loader --images {args.images}{' --data CIFAR10' if args.data else ''}",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"tarflow": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "source": "CIFAR-10, tiled" if args.data else "embedded digits, tiled",
        "memory": memory,
        "batch": {"loaders": LOADER_BATCH, "steps": STEP_BATCH},
        "results": results,
        "loader_over_step": over,
        "good": good,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(over, indent=2))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
