"""The feed: the order of memory, its background, and what goes wrong in it."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from tarflow.data import feed as feed_module
from tarflow.data.batches import batch_indices
from tarflow.data.feed import Feed
from tarflow.data.load import load
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare


def feed(images: Any, **options: Any) -> Feed:
    return Feed(images, **({"batch_size": 64, "seed": 0, "condition": "classes:10"} | options))


def running() -> bool:
    return any(thread.name.startswith("tarflow-feed") for thread in threading.enumerate())


def test_memory_and_map_have_the_order_of_the_seed(tmp_path: Path) -> None:
    memory = load("digits").train
    prepare("digits", tmp_path / "out", LoadOptions())
    mapped = load(str(tmp_path / "out")).train
    for step in (0, 5, 100):
        rows = batch_indices(len(memory), 64, step, 0)
        for images, part in ((memory, slice(None)), (mapped, slice(None)), (mapped, slice(10, 20))):
            pixels, labels = feed(images, rows=part).batch(step)
            assert torch.equal(pixels, memory.images[rows[part]])
            assert labels is not None and memory.labels is not None and torch.equal(labels, memory.labels[rows[part]])
    assert feed(memory, condition="none").batch(0)[1] is None


def test_a_map_that_feeds_another_device_is_gathered_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for a GPU: it takes tensors from the CPU and has no values."""
    prepare("digits", tmp_path / "out", LoadOptions())
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


def test_batches_are_made_ahead_and_in_any_order_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    images = load("digits").train
    monkeypatch.setattr(feed_module, "free_bytes", lambda device: 0)
    source, chosen = feed(images, device="meta"), list[int]()
    real = source._choose
    monkeypatch.setattr(source, "_choose", lambda step: (chosen.append(step), real(step))[1])
    for step in (0, 1, 2, 9, 10, 3, 4):
        source.batch(step)
        assert step in chosen
        chosen[:] = [later for later in chosen if later > step]
    assert running()
    source.close()
    assert not running()


def test_an_error_in_the_background_is_raised_where_the_batch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    images = load("digits").train
    monkeypatch.setattr(feed_module, "free_bytes", lambda device: 0)
    source = feed(images, device="meta")
    real = source._choose

    def failing(step: int) -> Any:
        if step > 2:
            raise OSError(5, "Input/output error", "pixels.bin")
        return real(step)

    monkeypatch.setattr(source, "_choose", failing)
    for step in range(3):
        source.batch(step)
    with pytest.raises(OSError, match="Input/output error"):
        source.batch(3)
    source.close()
    assert not running()


def test_memory_is_flat_over_an_epoch(tmp_path: Path) -> None:
    """The tenth part of benchmarks/loader.py's check: nothing piles up, and far less is held than the set takes."""
    prepare("digits", tmp_path / "out", LoadOptions(image_size=32))
    images = load(str(tmp_path / "out")).train
    source, peaks = feed(images, batch_size=16), []
    source.batch(0)
    tracemalloc.start()
    for step in range(200):  # two epochs
        source.batch(step)
        if step % 50 == 49:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.reset_peak()
    tracemalloc.stop()
    assert max(peaks[1:]) < 1.1 * peaks[0] + 20_000, peaks
    assert max(peaks) < 0.1 * images.images.nbytes, (peaks, images.images.nbytes)
