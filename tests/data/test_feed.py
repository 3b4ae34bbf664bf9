"""The feed: the order of memory, its background, what dies in it, and that it dies with it."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tarflow.data import feed as feed_module
from tarflow.data.batches import batch_indices
from tarflow.data.decode import Decoder, Spec
from tarflow.data.errors import DataError
from tarflow.data.feed import Feed
from tarflow.data.images import from_array
from tarflow.data.load import load, load_or_stream
from tarflow.data.prepare import prepare
from tarflow.data.records import Group
from tarflow.data.request import Request
from tarflow.data.streamed import StreamedSet, StreamedSplits

SOURCE = Path(__file__).resolve().parents[2] / "src"


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> StreamedSet:
    """Noise in row groups of 50; a thousand to learn from."""
    root = tmp_path_factory.mktemp("noise")

    def noise(k: int) -> bytes:
        buffer = io.BytesIO()
        from_array(np.random.default_rng(k).integers(0, 256, (3, 32, 32), np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    for name, count in (("train", 1000), ("test", 10)):
        table = pa.table({"image": [noise(k) for k in range(count)]})
        pq.write_table(table, root / f"{name}-0.parquet", row_group_size=50)
    splits = load_or_stream(str(root), Request(), storage="stream", held_out_fraction=0.1, split_seed=0)
    assert isinstance(splits, StreamedSplits)
    return splits.train


def feed(images: Any, **options: Any) -> Feed:
    return Feed(images, **({"batch_size": 64, "seed": 0, "labelled": True, "window": 200} | options))


def children() -> set[int]:
    """The processes that this one started and that still run."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        command = (entry.parent / "cmdline").read_bytes() if entry.parent.exists() else b""
        if int(fields[1]) == os.getpid() and fields[0] != "Z" and b"spawn_main" in command:
            found.add(int(entry.parent.name))
    return found


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def test_memory_and_map_have_the_order_of_the_seed(tmp_path: Path) -> None:
    memory = load("digits").train
    prepare("digits", tmp_path / "out", Request())
    mapped = load(str(tmp_path / "out")).train
    for step in (0, 5, 100):
        rows = batch_indices(len(memory), 64, step, 0)
        for images, part in ((memory, slice(None)), (mapped, slice(None)), (mapped, slice(10, 20))):
            pixels, labels = feed(images, rows=part).batch(step)
            assert torch.equal(pixels, memory.images[rows[part]])
            assert labels is not None and memory.labels is not None and torch.equal(labels, memory.labels[rows[part]])
    assert feed(memory, labelled=False).batch(0)[1] is None


def test_a_map_that_feeds_another_device_is_gathered_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for a GPU: it takes tensors from the CPU and has no values."""
    prepare("digits", tmp_path / "out", Request())
    mapped = load(str(tmp_path / "out")).train
    monkeypatch.setattr(feed_module, "free_bytes", lambda device: 8 * mapped.images.nbytes - 1)
    source = feed(mapped, device="meta")
    assert source.background
    for step in (0, 1, 2, 7):
        pixels, labels = source.batch(step)
        assert pixels.device.type == "meta" and pixels.shape == (64, 1, 8, 8)
        assert labels is not None and labels.device.type == "meta"
    source.close()
    monkeypatch.setattr(feed_module, "free_bytes", lambda device: 8 * mapped.images.nbytes)
    assert not feed(mapped, device="meta").background


def test_batches_are_made_ahead_and_in_any_order_that_is_asked_for(stream: StreamedSet) -> None:
    calm, ahead = feed(stream), feed(stream, workers=1)
    for step in (0, 1, 2, 9, 10, 3, 4):
        assert torch.equal(calm.batch(step)[0], ahead.batch(step)[0])
    assert within(10, lambda: ahead._ahead is not None and ahead._ahead._ready.qsize() == feed_module.AHEAD)
    calm.close(), ahead.close()
    assert "tarflow-feed" not in [thread.name for thread in threading.enumerate()]
    assert within(5, lambda: not children())


def test_a_killed_worker_ends_the_job_with_a_message(stream: StreamedSet) -> None:
    source = feed(stream, workers=2)
    source.batch(0)
    assert len(children()) == 2
    os.kill(min(children()), signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(DataError, match="a process that decodes images was killed, perhaps for want of memory"):
        for step in range(1, 100):
            source.batch(step)
    source.close()
    assert time.monotonic() - started < 20
    assert within(5, lambda: not children())


@pytest.mark.parametrize("moment", range(4))
def test_a_worker_killed_at_any_moment_is_no_hang(moment: int) -> None:
    """Answers are larger than a pipe holds: most of these moments are in the middle of one."""
    spec = Spec((3, 64, 64), 256, None, None)
    contents = [np.zeros((3, 64, 64), np.uint8)] * 400
    decoder = Decoder(2)
    decoder(contents, spec)
    victim = decoder.pool[moment % 2][0]
    assert victim.pid is not None
    threading.Timer(0.004 * moment, os.kill, (victim.pid, signal.SIGKILL)).start()
    started = time.monotonic()
    with pytest.raises(DataError, match="was killed"):
        while time.monotonic() - started < 20:
            decoder(contents, spec)
    decoder.close()
    assert time.monotonic() - started < 15


def test_workers_told_to_stop_with_the_whole_job_deliver_what_is_waited_for(stream: StreamedSet) -> None:
    calm, source = feed(stream), feed(stream, workers=2)
    source.batch(0)
    for pid in children():
        os.kill(pid, signal.SIGTERM)
    for step in range(1, 8):  # more than are ready
        assert torch.equal(source.batch(step)[0], calm.batch(step)[0])
    source.close()
    assert not children()


def test_an_error_in_the_background_is_raised_where_the_batch_is_asked_for(
    stream: StreamedSet,
) -> None:
    reads = []

    def failing(group: Group) -> Any:
        reads.append(group)
        if len(reads) > 4:  # the first window has four
            raise OSError(5, "Input/output error", "train-0.parquet")
        return group.read()

    groups = tuple(Group(group.rows, functools.partial(failing, group)) for group in stream.groups)
    source = feed(dataclasses.replace(stream, groups=groups), workers=1)
    source.batch(0)
    with pytest.raises(OSError, match="Input/output error"):
        for step in range(1, 100):
            source.batch(step)
    source.close()
    assert "tarflow-feed" not in [thread.name for thread in threading.enumerate()]


PARENT = """
import json, time
if __name__ == "__main__":
    from tarflow.data.decode import Decoder, Spec
    decode = Decoder(2)
    decode([b"no image"] * 64, Spec((1, 4, 4), 256, None, None))
    print(json.dumps([worker.pid for worker, _ in decode.pool]), flush=True)
    time.sleep(60)
"""


def test_workers_do_not_outlive_a_killed_training(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    workers = json.loads(parent.stdout.readline())
    assert len(workers) == 2 and all(Path(f"/proc/{pid}").exists() for pid in workers)
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def gone(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    assert within(10, lambda: all(map(gone, workers)))


def test_memory_is_flat_over_an_epoch(stream: StreamedSet) -> None:
    """The tenth part of benchmarks/loader.py's check: nothing piles up, and far less is held than the set takes."""
    encoded = sum(len(content) for group in stream.groups for content in group.read())  # type: ignore[arg-type]
    source = feed(stream, batch_size=20, window=100)
    peaks = []
    for step in range(10):  # what Python and Pillow keep for themselves
        source.batch(step)
    tracemalloc.start()
    for step in range(100):  # two epochs
        source.batch(step)
        if step % 25 == 24:
            peaks.append(tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes())
            tracemalloc.reset_peak()
    tracemalloc.stop()
    assert max(peaks[1:]) < 1.1 * peaks[0], peaks
    assert max(peaks) < 0.4 * encoded, (peaks, encoded)
