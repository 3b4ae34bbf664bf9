"""A prepared directory is the source, bit for bit: the same images, labels, names and split, from a memory map."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from forked import exit_code, fork, wait_for
from tarflow import digests, storage
from tarflow.cli import main
from tarflow.data.errors import DataError
from tarflow.data.load import ImageSet, load, load_all, load_held_out, open_scan
from tarflow.data.options import LoadOptions
from tarflow.data.store import write as packing
from tarflow.data.store.read import (
    LABELS_FILE,
    MANIFEST_FILE,
    NAMES_FILE,
    PIXELS_FILE,
    check_prepared,
    is_prepared,
    read_manifest,
)
from tarflow.data.store.write import prepare
from tarflow.training.setup import open_data, resolve
from tarflow.training.trainer import train
from training_cases import MODEL, TRAINING, assert_bitwise_equal, run_weights

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def encoded(seed: int, mode: str = "RGB", size: tuple[int, int] = (6, 5)) -> bytes:
    buffer = io.BytesIO()
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes without a split; grey images before the first in colour, two bad ones, a name that is not ASCII."""
    for k in range(24):
        place = tmp_path / "photos" / ("cat" if k < 12 else "dög")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{k:02}.png").write_bytes(encoded(k, "L" if k < 9 else "RGB"))
    (tmp_path / "photos" / "cat" / "03.png").write_bytes(b"no image")
    (tmp_path / "photos" / "dög" / "99.png").write_bytes(b"")
    return tmp_path / "photos"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    for name, seeds in (("train-0", range(7)), ("train-1", range(7, 12)), ("test-0", range(12, 17))):
        table = pa.table({"image": [encoded(k) for k in seeds], "label": [k % 3 for k in seeds]})
        pq.write_table(table, tmp_path / "shards" / f"{name}.parquet", row_group_size=3)
    return tmp_path / "shards"


def assert_same(a: ImageSet, b: ImageSet) -> None:
    assert torch.equal(a.images, b.images)
    assert (a.labels is None) == (b.labels is None)
    assert a.labels is None or (b.labels is not None and torch.equal(a.labels, b.labels))
    assert (list(a.names), a.levels, a.class_names) == (list(b.names), b.levels, b.class_names)
    assert a.digest() == b.digest()


@pytest.mark.parametrize(
    ("request_options", "split"),
    [
        ({}, {}),
        ({"image_size": (4, 3)}, {"held_out_fraction": 0.4, "split_seed": 3}),
        ({"channels": 1, "levels": 9}, {}),
        ({"image_size": 8, "channels": 3}, {}),
    ],
)
@pytest.mark.parametrize("source", ["folder", "shards", "digits", "npz"])
def test_it_is_what_load_gives(
    source: str, request_options: Any, split: Any, tmp_path: Path, request: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_COPY_BYTES", 200)  # several chunks of each
    path = source if source == "digits" else str(tmp_path / "a.npz")
    if source in ("folder", "shards"):
        path = str(request.getfixturevalue(source))
    np.savez(tmp_path / "a.npz", images=np.random.default_rng(0).integers(0, 256, (9, 5, 4), np.uint8))
    manifest, known = prepare(path, tmp_path / "out", LoadOptions(**request_options, skip_bad=True), **split)
    assert not known
    expected = load(path, **request_options, **split, skip_bad=True)
    got = load(str(tmp_path / "out"))
    assert_same(got.train, expected.train)
    assert_same(got.held_out, expected.held_out)
    assert got.skipped == expected.skipped and len(got.skipped) == (2 if source == "folder" else 0)
    assert got.train.mapped and got.train.known_digest == manifest.train_digest
    shape = {"image_size": tuple(expected.train.images.shape[2:]), "channels": expected.train.images.shape[1]}
    options = LoadOptions(**shape, levels=expected.train.levels, held_out_fraction=0.5, split_seed=9)
    held_out = load_held_out(str(tmp_path / "out"), options)
    assert_same(held_out, expected.held_out)
    everything, _ = load_all(str(tmp_path / "out"), **shape)
    assert torch.equal(everything.images, torch.cat([expected.train.images, expected.held_out.images]))
    stream = open_scan(str(tmp_path / "out"), **shape, levels=expected.train.levels)
    records = list(stream)
    assert [r.name for r in records] == [*expected.train.names, *expected.held_out.names]
    assert torch.equal(torch.stack([r.pixels for r in records if r.pixels is not None]), everything.images)


def test_training_on_it_is_training_on_the_source_and_a_run_may_go_on_with_either(tmp_path: Path) -> None:
    prepare("digits", tmp_path / "digits", LoadOptions(), held_out_fraction=0.2)
    for name, source in (("memory", "digits"), ("mapped", str(tmp_path / "digits"))):
        data = {"source": source, "held_out_fraction": 0.2, "flip": True}
        sections = {"model": MODEL, "data": data, "training": TRAINING | {"steps": 6}}
        splits = open_data(sections)
        train(resolve(sections, splits), splits, tmp_path / name)
    assert_bitwise_equal(run_weights(tmp_path / "memory"), run_weights(tmp_path / "mapped"))
    data["source"] = "digits"
    splits = open_data(sections)
    train(resolve(sections, splits), splits, tmp_path / "mapped", resume=True)  # would say if the images were others


def test_labels_are_mapped_by_name(folder: Path, tmp_path: Path) -> None:
    prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True))
    names = ("dög", "eel", "cat")
    assert_same(
        load(str(tmp_path / "out"), class_names=names).train, load(str(folder), class_names=names, skip_bad=True).train
    )
    with pytest.raises(DataError, match="unknown class 'cat'"):
        load(str(tmp_path / "out"), class_names=("dög", "eel"))


def test_again_is_up_to_date_until_the_source_changes(folder: Path, tmp_path: Path) -> None:
    out, request = tmp_path / "out", LoadOptions(skip_bad=True)
    first, _ = prepare(str(folder), out, request)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare(str(folder), out, request) == (first, True)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # with its times
    assert prepare(str(copy), out, request) == (first, True)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (folder / "cat" / "00.png").write_bytes(encoded(77, "L"))
    with pytest.raises(
        FileExistsError, match=r"out: prepared from .*photos, and .*photos is not the same files; .*--fo"
    ):
        prepare(str(folder), out, request)
    second, known = prepare(str(folder), out, request, force=True)
    assert not known and second.train_digest + second.held_out_digest != first.train_digest + first.held_out_digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "out", "photos"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 4}, "prepared with image size None, asked for image size 4"),
        ({"channels": 1}, "channels None, asked for channels 1"),
        ({"split_seed": 1}, "split seed 0, asked for split seed 1"),
        ({"held_out_fraction": 0.3}, "held out fraction 0.1, asked for held out fraction 0.3"),
        ({"variant": "mine"}, "variant '', asked for variant 'mine'"),
    ],
)
def test_another_preparation_is_refused(folder: Path, tmp_path: Path, options: Any, message: str) -> None:
    prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True))
    with pytest.raises(FileExistsError, match=message):
        prepare(str(folder), tmp_path / "out", skip_bad=True, **options)


def test_bad_records_are_refused_unless_they_may_be_skipped(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 25 images cannot be read \(skip_bad .*cat/03.png: not an image"):
        prepare(str(folder), tmp_path / "out", LoadOptions())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"], "something was left behind"
    prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True))
    with pytest.raises(DataError, match=r"2 images were skipped \(--skip-bad\), the first is cat/03.png: not an"):
        prepare(str(folder), tmp_path / "out", LoadOptions())


def test_what_is_not_ours_is_never_replaced(folder: Path, tmp_path: Path) -> None:
    for force in (False, True):
        with pytest.raises(FileExistsError, match="expected a new directory"):
            prepare("digits", folder, LoadOptions(), force=force)
    prepare("digits", tmp_path / "out", LoadOptions())
    with pytest.raises(DataError, match="is prepared already"):
        prepare(str(tmp_path / "out"), tmp_path / "other", LoadOptions())


def test_a_source_that_changes_on_the_way_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(done: int, total: int) -> None:
        (folder / "cat" / "00.png").write_bytes(encoded(78, "L", (6, 5)) + b"more")

    with pytest.raises(DataError, match="changed while it was read"):
        prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True), progress=progress)
    assert not (tmp_path / "out").exists()


def test_killed_on_the_way_it_leaves_nothing_that_the_next_try_does_not_clear(folder: Path, tmp_path: Path) -> None:
    import signal

    pid = os.fork()
    if pid == 0:

        def die(done: int, total: int) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True), progress=die)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert not is_prepared(str(tmp_path / "out"))
    assert len([p for p in tmp_path.iterdir() if p.name.startswith(".out.partial-")]) == 1
    (tmp_path / ".other.partial-1").mkdir()  # somebody else's
    prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.partial-1", "out", "photos"]
    storage.remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]


@forks
def test_a_second_one_at_once_is_refused_and_spoils_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, reached, go_on = tmp_path / "out", tmp_path / "reached", tmp_path / "go-on"

    def pause(done: int, total: int) -> None:
        """In the middle of the pixels, until the test says go on, or has failed."""
        if not reached.exists():
            reached.touch()
            until = time.monotonic() + 20
            while not go_on.exists() and time.monotonic() < until:
                time.sleep(0.005)

    def work(progress: Any = None) -> None:
        prepare(str(folder), out, LoadOptions(skip_bad=True), force=True, progress=progress)

    first = fork(lambda: work(pause))
    wait_for(reached, first)
    with pytest.raises(storage.InUse, match=rf"out: process {first} on .* is writing to it"):
        work()
    assert main(["prepare", str(folder), "--skip-bad", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tarflow: error: {out}: process {first} ")
    go_on.touch()
    assert exit_code(first) == 0
    assert_same(load(str(out)).train, load(str(folder), skip_bad=True).train)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["go-on", "out", "photos", "reached"]


def test_who_comes_when_another_has_just_ended_finds_what_it_left(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first look at the place and the lock of it."""
    real = storage.exclusive_name

    @contextlib.contextmanager
    def late(path: Path) -> Iterator[None]:
        monkeypatch.setattr(storage, "exclusive_name", real)
        prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True), split_seed=seed)
        with real(path):
            yield

    for seed in (0, 1):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        monkeypatch.setattr(storage, "exclusive_name", late)
        if seed == 0:
            assert prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True))[1], "it was made twice"
        else:
            with pytest.raises(FileExistsError, match="split seed 1, asked for split seed 0"):
                prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True))


def test_it_is_made_with_memory_for_a_few_hundred_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"image": [encoded(k, "L", (48, 48)) for k in range(8)] * 250})
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=100)
    monkeypatch.setattr(packing, "_COPY_BYTES", 1 << 18)
    prepare(str(tmp_path / "many.parquet"), tmp_path / "first", LoadOptions(image_size=8))  # imports, and caches
    tracemalloc.start()
    prepare(str(tmp_path / "many.parquet"), tmp_path / "out", LoadOptions(image_size=48))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = 2000 * 48 * 48
    assert (tmp_path / "out" / PIXELS_FILE).stat().st_size == whole
    assert peak < 0.7 * whole, f"{peak / 1e6:.1f} MB at most, for a set of {whole / 1e6:.1f} MB"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "pixels.bin: damaged, 115007 bytes of 115008"),
        ("gone", "pixels.bin: missing"),
        ("names", "names.bin: damaged, 0 names of 1797"),
        ("json", "prepared.json: not what `tarflow prepare` wrote"),
        ("field", "prepared.json: not what `tarflow prepare` wrote: .*shape: expected 3 values"),
        ("format", "prepared.json: expected format 2, got 1: prepare it again"),
        ("count", "pixels.bin: damaged, 115008 bytes of"),
    ],
)
def test_a_damaged_one_is_named(damage: str, message: str, tmp_path: Path) -> None:
    prepare("digits", tmp_path / "out", LoadOptions())
    manifest, pixels = tmp_path / "out" / MANIFEST_FILE, tmp_path / "out" / PIXELS_FILE
    values = json.loads(manifest.read_text())
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "gone":
        pixels.unlink()
    elif damage == "names":
        (tmp_path / "out" / NAMES_FILE).write_bytes(b"short")
    elif damage == "json":
        manifest.write_text("{")
    else:
        values |= {"field": {"shape": [8, 8]}, "format": {"format": 1}, "count": {"train": 3}}[damage]
        manifest.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "out"))


FILES = [MANIFEST_FILE, PIXELS_FILE, LABELS_FILE, NAMES_FILE]


def spoil(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def a_bit(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def test_a_check_reads_all_of_it_once_and_finds_it_sound(folder: Path, tmp_path: Path) -> None:
    manifest, _ = prepare(str(folder), tmp_path / "out", LoadOptions(skip_bad=True))
    seen: list[tuple[int, int]] = []
    assert check_prepared(tmp_path / "out", lambda done, total: seen.append((done, total))) == manifest
    size = sum((tmp_path / "out" / name).stat().st_size for name in FILES)
    assert seen[-1] == (size, size) and seen == sorted(seen)
    np.savez(tmp_path / "unlabelled.npz", images=np.zeros((9, 5, 4), np.uint8))
    prepare(str(tmp_path / "unlabelled.npz"), tmp_path / "bare", LoadOptions())
    assert not check_prepared(tmp_path / "bare").labelled


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (a_bit, "damaged, its digest is not that of what was written"),
        (lambda data: data[:-1], r"damaged, \d+ bytes of \d+"),
        (None, "missing"),
    ],
)
def test_a_check_names_the_file_that_is_not_what_was_written(
    name: str, change: Callable[[bytes], bytes] | None, reason: str, tmp_path: Path
) -> None:
    prepare("digits", tmp_path / "out", LoadOptions())
    if change is None:
        (tmp_path / "out" / name).unlink()
    else:
        spoil(tmp_path / "out" / name, change)
    with pytest.raises(DataError, match=rf"^\S*out/{name}: {reason}: prepare it again, with --force$"):
        check_prepared(tmp_path / "out")


def test_a_check_names_all_that_are_damaged(tmp_path: Path) -> None:
    prepare("digits", tmp_path / "out", LoadOptions())
    for name in (PIXELS_FILE, NAMES_FILE):
        spoil(tmp_path / "out" / name, a_bit)
    with pytest.raises(DataError, match=f"{PIXELS_FILE}: damaged, .*; .*{NAMES_FILE}: damaged"):
        check_prepared(tmp_path / "out")


def test_a_file_that_the_disk_cannot_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    prepare("digits", tmp_path / "out", LoadOptions())
    monkeypatch.setattr(digests, "file_facts", fail)
    with pytest.raises(DataError, match=f"{PIXELS_FILE}: Input/output error"):
        check_prepared(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: None,
        lambda facts: {name: facts[name] for name in FILES if name != PIXELS_FILE},
        lambda facts: facts | {"../digests.json": None},
        lambda facts: facts | {PIXELS_FILE: 3},
        lambda facts: facts | {PIXELS_FILE: {"bytes": "3", "blake2b": ""}},
        lambda facts: facts | {PIXELS_FILE: {"bytes": 3}},
    ],
)
def test_digests_that_are_damaged_are_named(change: Any, tmp_path: Path) -> None:
    prepare("digits", tmp_path / "out", LoadOptions())
    file = tmp_path / "out" / digests.DIGESTS_FILE
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(DataError, match=r"out/digests.json: damaged: prepare it again, with --force"):
        check_prepared(tmp_path / "out")
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"out/digests.json: damaged"):
        check_prepared(tmp_path / "out")
    file.unlink()
    with pytest.raises(DataError, match=r"out/digests.json: missing, so that nothing tells what was written"):
        check_prepared(tmp_path / "out")
    load(str(tmp_path / "out"))  # of a version that did not write them


def test_digests_are_taken_while_writing_and_opening_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a set of a terabyte would be read a second time, and again before every training."""
    real, read = digests.file_facts, []

    def file_facts(path: Any, *arguments: Any) -> Any:
        read.append(Path(path).name)
        return real(path, *arguments)

    monkeypatch.setattr(digests, "file_facts", file_facts)
    prepare("digits", tmp_path / "out", LoadOptions())
    assert read and PIXELS_FILE not in read
    read.clear()
    spoil(tmp_path / "out" / PIXELS_FILE, a_bit)
    load(str(tmp_path / "out"))
    assert read == []


def test_the_command_says_whether_it_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["prepare", "digits", "--out", str(out)]) == 0
    written = capsys.readouterr().out.removeprefix(f"{out}: ")
    assert main(["prepare", "--check", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: sound: {written}"
    spoil(out / LABELS_FILE, a_bit)
    assert main(["prepare", f"--check={out}"]) == 2
    assert f"tarflow: error: {out}/labels.bin: damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_size": 4},
            "prepared with image size 8x8, asked for 4x4: ask for what it has, or prepare digits once more",
        ),
        ({"channels": 3}, "prepared with channels 1, asked for 3"),
        ({"levels": 256}, "prepared with levels 17, asked for 256"),
    ],
)
def test_what_it_was_not_prepared_for_is_refused(options: Any, message: str, tmp_path: Path) -> None:
    prepare("digits", tmp_path / "out", LoadOptions())
    with pytest.raises(DataError, match=message):
        load(str(tmp_path / "out"), **options)


def test_the_manifest_says_what_was_done(folder: Path, tmp_path: Path) -> None:
    manifest, _ = prepare(str(folder), tmp_path / "out", LoadOptions(image_size=4, skip_bad=True), variant="mine")
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.variant, manifest.shape, manifest.levels, manifest.own_split) == ("mine", (3, 4, 4), 256, False)
    assert "EXIF" in manifest.preprocessing
    assert load(str(tmp_path / "out")).variant == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_behind_a_link_is_prepared_where_it_lies(force: bool, tmp_path: Path) -> None:
    there, link = tmp_path / "disk" / "there", tmp_path / "link"
    there.parent.mkdir()
    link.symlink_to(there)
    prepare("digits", link, LoadOptions())
    if force:
        prepare("digits", link, LoadOptions(image_size=4), force=True)
    assert link.is_symlink() and is_prepared(str(there))
    assert len(load(str(link)).train) and [path.name for path in tmp_path.iterdir() if path != link] == ["disk"]
