"""Does the data keep up? Images a second of the loader alone against the training step, and memory over an epoch.

    python -m benchmarks.loader --out benchmarks/results/loader-cpu.json
    python -m benchmarks.loader --data PATH_OF_CIFAR10 --out benchmarks/results/loader-cpu.json

Makes a set of 100,000 images of 32x32 as Parquet shards of PNG files: those of --data, again and again, each time moved
by another number of pixels; without --data, the embedded digits tiled four by four. Then it measures, in turn,

- `memory`: one epoch of the stream, with the resident memory of the process and of its workers all along;
- `loaders`: the stream with several numbers of workers, and the same set prepared and mapped, for both image sizes;
- `steps`: the training step of the recipes `digits` (batch 32) and `cifar10` (fewer images at a time than its 256, as
  written down with it: a step of 256 takes minutes on a CPU).

Rounds are interleaved; of each number the median and the best are kept. Exits with 1 where memory is not flat within
10 %, or a loader is slower than the step.
"""

from __future__ import annotations

import argparse
import io
import json
import os
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
from tarflow.data.load import load, load_or_stream
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare
from tarflow.training.directory import RunDirectory
from tarflow.training.engine import Engine
from tarflow.training.setup import resolve
from tarflow.training.trainer import Trainer

SHARD, GROUP = 10_000, 1_000  # images a file, and a row group
WINDOW = 8_192  # the default of `shuffle_window`
STEP_BATCH = {"digits": 32, "cifar10": 8}
FLAT = 0.10


def pictures(data: str | None, count: int) -> Iterator[tuple[Any, int]]:
    """`count` images (C, 32, 32) uint8 with their labels."""
    if data is not None:
        images = load(data, image_size=32, channels=3).train
        pixels, labels = images.images.numpy(), images.labels
        for k in range(count):
            row, times = k % len(pixels), k // len(pixels)
            label = 0 if labels is None else int(labels[row])
            yield np.roll(pixels[row], (times, times), axis=(1, 2)), label
        return
    digits = load("digits", levels=256).train.images.numpy()[:, 0]
    generator = np.random.default_rng(0)
    for _ in range(count):
        rows = generator.integers(0, len(digits), (4, 4))
        tiled = digits[rows].transpose(0, 2, 1, 3).reshape(1, 32, 32)
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


def resident(pids: list[int]) -> int:
    """Bytes of memory of these processes, without pages of files that the system may drop."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += 1024 * int(line.split()[1])
    return total


def streamed(folder: Path) -> Any:
    """What is learned from of a folder of shards, not in memory."""
    return load_or_stream(str(folder), LoadOptions(), storage="stream", held_out_fraction=0.1, split_seed=0).train


def memory_over_an_epoch(folder: Path, workers: int) -> dict[str, Any]:
    """Resident memory in twenty parts of an epoch. The first part, in which everything is allocated, is not counted.

    For a fresh process: one that has already freed memory could hide growth in it.
    """
    images = streamed(folder)
    feed = Feed(images, batch_size=256, seed=0, labelled=True, window=WINDOW, workers=workers)
    steps, samples, part = len(images) // 256, [], []
    for step in range(steps):
        feed.batch(step)
        pool = feed._stream.decoder.pool if feed._stream is not None else []
        part.append(resident([os.getpid(), *(worker.pid for worker, _ in pool if worker.pid)]))
        if (step + 1) % max(1, steps // 20) == 0:
            samples.append(max(part))
            part.clear()
    feed.close()
    counted = samples[1:]
    spread = max(counted) / min(counted) - 1
    encoded = sum(len(content) for group in images.groups for content in group.read())
    return {
        "images": len(images),
        "workers": workers,
        "peak_mb_of_each_twentieth": [round(sample / 1e6, 1) for sample in samples],
        "spread": round(spread, 4),
        "flat_within_10_percent": spread <= FLAT,
        "encoded_set_mb": round(encoded / 1e6, 1),
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


def loader(images: Any, batch_size: int, workers: int) -> Timed:
    """The batches alone, one step after the other."""
    feed = Feed(images, batch_size=batch_size, seed=0, labelled=True, window=WINDOW, workers=workers)
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
        held_out = max(10, args.images // 100)
        write_shards(place / "shards", pictures(args.data, args.images + held_out), held_out)
        small = load("digits", held_out_fraction=0.2).train
        write_shards(place / "small", ((small.images[k % 1438].numpy() * 15, 0) for k in range(10_000)), 100)
        prepare(str(place / "shards"), place / "mapped", LoadOptions())
        prepare("digits", place / "digits", LoadOptions(), held_out_fraction=0.2)

        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            memory = fresh.submit(memory_over_an_epoch, place / "shards", workers=2).result()
        print(json.dumps(memory), file=sys.stderr)
        timed = {
            "cifar10 step": step("cifar10", str(place / "mapped"), place),
            "cifar10 mapped": loader(load(str(place / "mapped")).train, 256, 0),
            **{f"cifar10 streamed, {n} workers": loader(streamed(place / "shards"), 256, n) for n in (0, 1, 2)},
            "digits step": step("digits", str(place / "digits"), place),
            "digits mapped": loader(load(str(place / "digits")).train, 32, 0),
            **{f"digits streamed, {n} workers": loader(streamed(place / "small"), 32, n) for n in (0, 1, 2)},
        }
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
        "batch": {"loaders": {"cifar10": 256, "digits": 32}, "steps": STEP_BATCH},
        "results": results,
        "loader_over_step": over,
        "good": good,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(over, indent=2))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
