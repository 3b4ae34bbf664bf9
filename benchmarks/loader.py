"""Does the data keep up? Images a second of the loader against the training step, ways to keep a set, and memory.

    python -m benchmarks.loader --out benchmarks/results/loader-cpu.json
    python -m benchmarks.loader --data PATH_OF_CIFAR10 --out benchmarks/results/loader-cpu.json

Makes a set of 100,000 images of 32x32 as Parquet shards of PNG files: those of --data, again and again, each time moved
by another number of pixels; without --data, the embedded digits tiled four by four. Then it measures, in turn,

- `memory`: making the set's store and an epoch of batches from it, and one scan of the shards as `score` makes it, each
  with the resident memory of its process all along;
- `ways`: batches of 64 images in random order from sets of 64 and of 256 pixels a side (tiles of 32), kept as raw
  pixels that are mapped (the store), as Arrow IPC that is mapped, and encoded (PNG, JPEG) by offset in one file; and
  the bytes an image takes in each;
- `loaders`: `Feed` on memory and on the store, and torch's `DataLoader` on the same memory, with and without workers;
- `steps`: the training step of the recipes `digits` (batch 32), `cifar10` (8 images at a time, not 256: a step of 256
  takes minutes on a CPU) and `imagenet64` (2 images, and 2 of its 64 layers: the whole model is slower still).

Rounds are interleaved; of each number the median and the best are kept. Exits with 1 where memory is not flat within
10 %, or a loader is slower than the step.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tarflow import __version__, recipes
from tarflow.data.batches import batch_indices
from tarflow.data.feed import Feed
from tarflow.data.images import decode, from_array, to_array
from tarflow.data.load import load, open_scan
from tarflow.data.sets import ImageSet, Splits
from tarflow.data.store.write import prepare
from tarflow.training.directory import RunDirectory
from tarflow.training.engine import Engine
from tarflow.training.setup import resolve
from tarflow.training.trainer import Trainer

SHARD, GROUP = 10_000, 1_000  # images a file, and a row group
STEPS = {"digits": (32, 8, 1), "cifar10": (8, 32, 3), "imagenet64": (2, 64, 3)}  # batch, side, channels
FLAT = 0.10
WAYS = {64: 4000, 256: 600}  # side, and images of the sets of that side


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
        yield digits[rows].transpose(0, 2, 1, 3).reshape(1, 32, 32), int(rows[0, 0] % 10)


def encoded(pixels: Any, kind: str, **options: Any) -> bytes:
    """The contents of a file with these pixels (C, H, W)."""
    buffer = io.BytesIO()
    from_array(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def write_shards(folder: Path, images: Iterator[tuple[Any, int]], held_out: int) -> None:
    """Parquet files in the layout of `datasets`: the first `held_out` images as the test split, the others to train."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows: list[tuple[bytes, int]] = []
    number = 0
    for k, (pixels, label) in enumerate(itertools.chain(images, [(None, 0)]), start=1):
        if pixels is not None:
            rows.append((encoded(pixels, "PNG", compress_level=1), label))
        if rows and (k == held_out or len(rows) == SHARD or pixels is None):
            name = "test-00000.parquet" if k == held_out else f"train-{number:05}.parquet"
            number += k != held_out
            table = pa.table({"image": pa.array([row[0] for row in rows], pa.binary()), "label": [r[1] for r in rows]})
            pq.write_table(table, folder / name, row_group_size=GROUP, compression="none")
            rows.clear()


def resident() -> int:
    """Bytes of memory of this process, without pages of files that the system may drop."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def peaks(steps: Iterable[Any], count: int) -> dict[str, Any]:
    """Resident memory in twenty parts of so many steps, and how far the second half is above the first.

    The first part, in which everything is allocated, is not counted.
    """
    samples, part = [], []
    for step, _ in enumerate(steps, start=1):
        if step % max(1, count // 2000) == 0:
            part.append(resident())
        if step % max(1, count // 20) == 0 and part:
            samples.append(max(part))
            part.clear()
    growth = max(samples[len(samples) // 2 :]) / max(samples[1 : len(samples) // 2]) - 1
    return {
        "peak_mb_of_each_twentieth": [round(sample / 1e6, 1) for sample in samples],
        "growth": round(growth, 4),
        "flat_within_10_percent": growth <= FLAT,
    }


def memory_of_a_store(shards: Path) -> dict[str, Any]:
    """Of making a store, and of batches from it. For a fresh process: one that has freed memory could hide growth."""
    store, making = shards.with_name("store"), list[int]()
    prepare(str(shards), store, progress=lambda done, total: making.append(resident()))
    images = load(str(store)).train
    feed = Feed(images, batch_size=256, seed=0, condition="classes:10")
    steps = len(images) // 256
    sizes = {"set_mb": images.images.nbytes / 1e6, "peak_mb_while_the_store_is_made": max(making) / 1e6}
    found = {"images": len(images)} | {name: round(size, 1) for name, size in sizes.items()}
    return found | peaks(map(feed.batch, range(steps)), steps)


def memory_of_a_scan(folder: Path) -> dict[str, Any]:
    """Of going through all images once, as `score` does."""
    scan = open_scan(str(folder), image_size=32, channels=3, levels=256)
    return {"images": scan.total} | peaks(scan, scan.total)


class Timed:
    """A thing that makes `images` a call, and its rates."""

    def __init__(self, images: int, call: Callable[[], Any], bytes_an_image: float | None = None) -> None:
        self.images, self.call, self.rates, self.bytes = images, call, list[float](), bytes_an_image
        call()

    def round(self, seconds: float) -> None:
        calls, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < seconds or not calls:
            self.call()
            calls += 1
        self.rates.append(calls * self.images / passed)

    def summary(self) -> dict[str, Any]:
        found = {"images_per_second": round(statistics.median(self.rates), 1), "best": round(max(self.rates), 1)}
        return found | ({} if self.bytes is None else {"bytes_an_image": round(self.bytes)})


def ways(place: Path, side: int, count: int, pixels: Any) -> dict[str, Timed]:
    """Batches of 64 in random order of `count` images, tiled of `pixels` (N, C, 32, 32), kept in several ways."""
    import pyarrow as pa

    tiles = np.random.default_rng(0).integers(0, len(pixels), (count, side // 32, side // 32))
    images = pixels[tiles].transpose(0, 3, 1, 4, 2, 5).reshape(count, -1, side, side)
    shape, size = images.shape[1:], images[0].size
    images.tofile(place / f"{side}.raw")
    mapped = np.memmap(place / f"{side}.raw", np.uint8, "r", shape=images.shape)
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), count, [None, pa.py_buffer(images)])
    table = pa.table({"pixels": column})
    with pa.OSFile(str(place / f"{side}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    arrow = pa.ipc.open_file(pa.memory_map(str(place / f"{side}.arrow"))).read_all()["pixels"]
    steps = iter(range(10**9))

    def rows() -> Any:
        return batch_indices(count, 64, next(steps), 0).numpy()

    def by_arrow() -> Any:
        taken = arrow.take(pa.array(rows())).combine_chunks()
        return np.frombuffer(taken.buffers()[1], np.uint8).reshape(-1, *shape)

    found = {"raw, mapped": Timed(64, lambda: mapped[rows()], size), "Arrow IPC, mapped": Timed(64, by_arrow, size)}
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 90})):
        files = [encoded(image, kind, **options) for image in images]
        ends = np.cumsum([0, *map(len, files)])
        (place / f"{side}.{kind}").write_bytes(b"".join(files))
        text = np.memmap(place / f"{side}.{kind}", np.uint8, "r")

        def by_offset(text: Any = text, ends: Any = ends) -> Any:
            return np.stack([to_array(decode(text[ends[k] : ends[k + 1]].tobytes())) for k in rows()])

        found[f"{kind} by offset"] = Timed(64, by_offset, ends[-1] / count)
    return {f"{side} pixels, {name}": timed for name, timed in found.items()}


class _Rows(Dataset[Any]):
    """Images in memory as torch's `DataLoader` wants them: a batch at a time."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> Any:
        return self.images.images[rows], None if self.images.labels is None else self.images.labels[rows]


def data_loader(images: ImageSet, batch_size: int, workers: int) -> Timed:
    """torch's `DataLoader` with the order of `batches`."""
    order = [batch_indices(len(images), batch_size, step, 0).tolist() for step in range(20_000)]
    loader = DataLoader(_Rows(images), batch_sampler=order, num_workers=workers, collate_fn=tuple)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return Timed(batch_size, lambda: next(batches))


def feed(images: ImageSet, batch_size: int) -> Timed:
    """The batches alone, one step after the other."""
    steps, source = iter(range(10**9)), Feed(images, batch_size=batch_size, seed=0, condition="classes:10")
    return Timed(batch_size, lambda: source.batch(next(steps)))


def step(recipe: str, folder: Path) -> Timed:
    """The training step of a recipe, on noise in memory."""
    sections = recipes.load(recipe)
    batch, side, channels = STEPS[recipe]
    sections["training"] |= {"batch_size": batch}
    if recipe == "imagenet64":
        sections["model"] |= {"layers": [1, 1]}
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 16, (256, channels, side, side), np.uint8))
    levels = 17 if recipe == "digits" else 256
    classes = sections["model"].get("num_classes", 10 if recipe == "digits" else 0)
    names = tuple(str(k) for k in range(classes))
    labels = torch.arange(256) % classes if classes else None
    images = ImageSet(pixels, labels, tuple(str(k) for k in range(256)), levels, names)
    splits = Splits(images, images, True, ())
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
        prepare("digits", place / "digits")
        memory = {}
        for name, measure in (("store", memory_of_a_store), ("scan", memory_of_a_scan)):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                memory[name] = fresh.submit(measure, place / "shards").result()
        print(json.dumps(memory), file=sys.stderr)
        mapped, digits = load(str(place / "store")).train, load("digits").train
        kept = mapped.subset(range(min(20_000, len(mapped))))
        timed = {
            "cifar10, mapped": feed(mapped, 256),
            "cifar10, memory": feed(kept, 256),
            "cifar10, DataLoader": data_loader(kept, 256, 0),
            "cifar10, DataLoader, 2 workers": data_loader(kept, 256, 2),
            "digits, mapped": feed(load(str(place / "digits")).train, 32),
            "digits, memory": feed(digits, 32),
            "digits, DataLoader": data_loader(digits, 32, 0),
        }
        for side, count in WAYS.items():
            timed |= ways(place, side, count, kept.images.numpy())
        timed |= {f"{name} step": step(name, place / name) for name in STEPS}
        for _ in range(args.rounds):
            for entry in timed.values():
                entry.round(args.seconds)
    results = {name: entry.summary() for name, entry in timed.items()}
    rates = {name: result["images_per_second"] for name, result in results.items()}
    loaders = {
        "digits": ("digits, mapped", "digits, memory"),
        "cifar10": ("cifar10, mapped", "cifar10, memory"),
        "imagenet64": ("64 pixels, raw, mapped",),
    }
    over = {f"{n} over {r}": round(rates[n] / rates[f"{r} step"], 2) for r, names in loaders.items() for n in names}
    good = all(entry["flat_within_10_percent"] for entry in memory.values()) and min(over.values()) > 1
    report = {
        "command": f"python -m benchmarks.loader --images {args.images}{' --data CIFAR10' if args.data else ''}",
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "versions": {"tarflow": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "source": "CIFAR-10, tiled" if args.data else "embedded digits, tiled",
        "memory": memory,
        "results": results,
        "loader_over_step": over,
        "good": good,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(over, indent=2))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
