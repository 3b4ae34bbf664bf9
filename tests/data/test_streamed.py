"""A stream sees the images that `load` sees, in its own order; what is bad is named, and replaced or refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from tarflow.cli import main
from tarflow.data import streamed
from tarflow.data.errors import DataError
from tarflow.data.feed import Feed
from tarflow.data.load import ImageSet, load, load_held_out, load_or_stream
from tarflow.data.prepare import prepare
from tarflow.data.request import Request
from tarflow.data.streamed import StreamedSet, StreamedSplits
from tarflow.training.setup import open_data, resolve
from tarflow.training.trainer import train
from training_cases import MODEL, TRAINING, assert_bitwise_equal, run_weights


def png(seed: int, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shards(root: Path, counts: dict[str, int], **replaced: bytes) -> Path:
    """Parquet files with 2 classes and row groups of 7; the keyword `k12` replaces image 12."""
    root.mkdir(parents=True, exist_ok=True)
    k = 0
    for name, count in counts.items():
        data = [replaced.get(f"k{i}", png(i)) for i in range(k, k + count)]
        table = pa.table({"image": data, "label": [i % 2 for i in range(k, k + count)]})
        pq.write_table(table, root / f"{name}.parquet", row_group_size=7)
        k += count
    return root


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", {"train-0": 30, "train-1": 25, "test-0": 12})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Grey and colour, several sizes, two classes, no split: to be scaled."""
    for k in range(60):
        path = tmp_path / "photos" / ("ab"[k % 2]) / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(k, (4 + k % 3, 5), "L" if k % 5 else "RGB"))
    return tmp_path / "photos"


def stream(source: Path | str, split: Any = None, **request: Any) -> StreamedSplits:
    split = {"held_out_fraction": 0.1, "split_seed": 0} | (split or {})
    found = load_or_stream(str(source), Request(**request), storage="stream", **split)
    assert isinstance(found, StreamedSplits)
    return found


def feed(images: StreamedSet | ImageSet, **options: Any) -> Feed:
    return Feed(images, **({"batch_size": 8, "seed": 0, "labelled": True, "window": 20} | options))


def walk(images: StreamedSet, steps: range, **options: Any) -> tuple[Tensor, Tensor]:
    source = feed(images, **options)
    batches = [source.batch(step) for step in steps]
    source.close()
    return torch.cat([pixels for pixels, _ in batches]), torch.cat([y for _, y in batches if y is not None])


def as_rows(pixels: Tensor, labels: Tensor) -> list[tuple[int, ...]]:
    return sorted((*image.flatten().tolist(), int(y)) for image, y in zip(pixels, labels, strict=True))


@pytest.mark.parametrize(
    ("name", "request_options", "split"),
    [
        ("shards", {}, {}),
        ("shards", {"image_size": 3, "channels": 1, "levels": 9, "class_names": ("1", "0")}, {}),
        ("folder", {"image_size": 4}, {"held_out_fraction": 0.3, "split_seed": 5}),
    ],
)
def test_an_epoch_is_the_images_of_load(name: str, request_options: Any, split: Any, request: Any) -> None:
    source = request.getfixturevalue(name)
    expected = load(str(source), **request_options, **split)
    got = stream(source, split, **request_options)
    for ours, theirs in ((got.train, expected.train), (got.held_out, expected.held_out)):
        assert len(ours) == len(theirs) and list(ours.names) == list(theirs.names)
        assert (ours.levels, ours.class_names, ours.image_shape) == (
            theirs.levels,
            theirs.class_names,
            theirs.image_shape,
        )
        assert ours.labels is not None and theirs.labels is not None and torch.equal(ours.labels, theirs.labels)
        pixels, labels = walk(ours, range(2), batch_size=len(ours))
        for epoch in (slice(0, len(ours)), slice(len(ours), None)):
            assert as_rows(pixels[epoch], labels[epoch]) == as_rows(theirs.images, theirs.labels)
        chosen, known = ours.choice(9, 3), theirs.choice(9, 3)
        assert torch.equal(chosen.images, known.images) and chosen.names == known.names
        assert chosen.labels is not None and known.labels is not None and torch.equal(chosen.labels, known.labels)
    assert got.own_split == expected.own_split
    held_out = load_held_out(
        str(source),
        image_size=got.train.image_shape[1:],
        channels=got.train.image_shape[0],
        levels=got.train.levels,
        storage="stream",
        **({"held_out_fraction": 0.1, "split_seed": 0} | split),
    )
    assert torch.equal(held_out.images, expected.held_out.images)


def test_any_step_anywhere_and_any_part_of_it_is_the_same(shards: Path) -> None:
    images = stream(shards).train
    whole, labels = walk(images, range(20))
    again, _ = walk(images, range(13, 20))
    assert torch.equal(again, whole[13 * 8 :])
    parts = [walk(images, range(20), rows=rows) for rows in (slice(0, 3), slice(3, 8))]
    by_step = [pixels.reshape(20, -1, 3, 4, 4) for pixels, _ in parts]
    assert torch.equal(torch.cat(by_step, dim=1).reshape(whole.shape), whole)
    assert torch.equal(torch.cat([y.reshape(20, -1) for _, y in parts], dim=1).reshape(-1), labels)
    assert not torch.equal(walk(images, range(7), seed=1)[0], whole[: 7 * 8])


def test_workers_change_nothing_but_the_time(shards: Path) -> None:
    images = stream(shards).train
    here, there = (walk(images, range(6), batch_size=40, workers=workers) for workers in (0, 2))
    assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])


def test_a_bad_record_is_refused_by_name(tmp_path: Path) -> None:
    source = write_shards(tmp_path, {"train-0": 30, "test-0": 8}, k12=b"no image", k33=b"")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"train-0.parquet:12: not an image.* \(skip_bad leaves such images out\)"):
            walk(stream(source).train, range(4), batch_size=40, workers=workers)
    with pytest.raises(DataError, match=r"test-0.parquet:3: empty file"):
        stream(source).held_out.choice(8, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_record_may_be_replaced_and_the_stream_goes_on(workers: int, tmp_path: Path) -> None:
    source = write_shards(tmp_path, {"train-0": 30, "test-0": 8}, k12=b"no image", k13=b"", k33=b"")
    images = stream(source, skip_bad=True).train
    seen = feed(images, batch_size=30, workers=workers)
    good = load(str(source), skip_bad=True).train
    for step in range(3):
        pixels, labels = seen.batch(step)
        assert labels is not None and good.labels is not None
        extra = as_rows(pixels, labels)
        for row in as_rows(good.images, good.labels):
            extra.remove(row)
        # 12 and 13 are the last but one and the last of their group of seven: its first one, 7, is seen three times
        assert extra == as_rows(good.images[7:8].repeat(2, 1, 1, 1), good.labels[7:8].repeat(2))
    seen.close()
    reasons = ("not an image, or in a format that is not read", "empty file")
    assert seen.skipped == dict(zip(("train-0.parquet:12", "train-0.parquet:13"), reasons, strict=True))
    assert len(seen.newly_skipped()) == 2 and seen.newly_skipped() == []
    assert len(stream(source, skip_bad=True).held_out.choice(8, 0)) == 7


def test_a_group_of_bad_records_has_nothing_to_put_in_their_place(tmp_path: Path) -> None:
    bad = {f"k{k}": b"no image" for k in range(7, 14)}
    images = stream(write_shards(tmp_path, {"train-0": 30, "test-0": 8}, **bad), skip_bad=True).train
    with pytest.raises(DataError, match=r"none of the 7 images from train-0.parquet:7 on can be read: not an image"):
        walk(images, range(1), batch_size=30)


def test_an_image_unlike_the_others_is_an_error_even_where_bad_ones_are_skipped(tmp_path: Path) -> None:
    odd = write_shards(tmp_path / "odd", {"train-0": 30, "test-0": 8}, k12=png(1, (5, 4)))
    with pytest.raises(DataError, match="train-0.parquet:12: is 4x5, and the first images are 4x4: give an image size"):
        walk(stream(odd, skip_bad=True).train, range(1), batch_size=30)
    grey = {f"k{k}": png(k, mode="L") for k in range(38) if k != 12}
    source = write_shards(tmp_path / "grey", {"train-0": 30, "test-0": 8}, **grey)
    with pytest.raises(DataError, match="train-0.parquet:12: is in colour, and the first images are grey: give the"):
        walk(stream(source, skip_bad=True).train, range(1), batch_size=30)
    assert walk(stream(source, channels=1).train, range(1), batch_size=30)[0].shape == (30, 1, 4, 4)
    sizes = write_shards(tmp_path / "sizes", {"train-0": 30, "test-0": 8}, k7=png(1, (5, 4)))
    with pytest.raises(DataError, match="holds images of 4x4 and 4x5 .*give an image size"):
        stream(sizes)


def test_what_cannot_be_streamed_says_so(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(DataError, match="storage: digits cannot be streamed, only Parquet files and folders"):
        stream("digits")
    prepare(str(shards), tmp_path / "out", Request())
    with pytest.raises(DataError, match="storage: .*out is prepared, and mapped into memory"):
        stream(tmp_path / "out")


def test_auto_streams_what_would_fill_half_of_the_memory(
    shards: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = {"held_out_fraction": 0.1, "split_seed": 0}

    def streams(source: Path | str, **request: Any) -> bool:
        found = load_or_stream(str(source), Request(**request), storage="auto", **split)
        return isinstance(found, StreamedSplits)

    assert not streams(shards) and not streams(folder, image_size=4) and not streams("digits")
    needed = (30 + 25 + 12) * 3 * 4 * 4
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 2 * needed)
    assert not streams(shards)
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 2 * needed - 2)
    assert streams(shards) and not streams(shards, image_size=3) and streams(shards, image_size=(4, 5))
    assert not streams("digits")


def test_only_so_many_are_loaded_to_compare_with(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "LOADED_BYTES", 10 * 48)
    splits = load(str(shards), storage="stream")
    assert (len(splits.train), len(splits.held_out)) == (10, 10)
    assert set(splits.train.names) <= set(load(str(shards)).train.names)


def test_the_digest_tells_when_files_labels_or_split_are_others(tmp_path: Path) -> None:
    def digest(split: Any = None, **request: Any) -> str:
        return stream(tmp_path, split, **request).train.digest()

    write_shards(tmp_path, {"some": 30})
    first = digest()
    assert digest() == first
    others = [digest({"split_seed": 1}), digest(image_size=3), digest(levels=9), digest(class_names=("1", "0"))]
    write_shards(tmp_path, {"some": 30}, k3=png(3, (4, 4)) + b"more")
    others.append(digest())
    assert len({first, *others}) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_is_the_uninterrupted_one(workers: int, shards: Path, tmp_path: Path) -> None:
    data = {"source": str(shards), "storage": "stream", "shuffle_window": 20, "workers": workers}
    for name, stops in (("whole", [11]), ("parts", [4, 11])):
        for steps in stops:
            sections = {"model": MODEL, "data": data, "training": TRAINING | {"steps": 11, "batch_size": 33}}
            splits = open_data(sections)
            config = resolve(sections, splits)
            assert config.data is not None and config.data.storage == "stream"

            def stop(metrics: dict[str, Any], last: int = steps) -> None:
                if last < 11 and metrics["step"] > last:
                    raise KeyboardInterrupt

            try:
                train(config, splits, tmp_path / name, resume=True, report=stop)
            except KeyboardInterrupt:
                assert steps < 11
    assert_bitwise_equal(run_weights(tmp_path / "whole"), run_weights(tmp_path / "parts"))


def test_from_the_command_line_to_the_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_shards(tmp_path / "data", {"train-0": 40, "test-0": 12}, k12=b"no image")
    small = "--image-size 4 --patch-size 2 --width 64 --layers 1 --batch-size 40 --sample-every 0 --steps 2"
    command = f"train --data {source} --out {tmp_path}/run --storage stream --workers 0 {small}"
    assert main(command.split()) == 2
    assert "train-0.parquet:12: not an image" in capsys.readouterr().err
    assert main([*command.split(), "--resume", "--skip-bad"]) == 0
    assert "skipped train-0.parquet:12: not an image" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path / "run"), "--draws", "1"]) == 2, "that a run skipped is no leave to skip"
    assert main(["evaluate", str(tmp_path / "run"), "--draws", "1", "--skip-bad"]) == 0
    assert '"images": 12' in capsys.readouterr().out
