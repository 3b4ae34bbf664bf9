"""What a file claims is looked at before room is made for it: small files stay small, whatever is in them."""

from __future__ import annotations

import gzip
import io
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.memory import peak, reset_peak
from tarflow.data import assemble, errors, images
from tarflow.data.errors import DataError, check_unpacked
from tarflow.data.images import Values
from tarflow.data.load import load, load_all
from tarflow.data.options import LoadOptions
from tarflow.data.readers.idx import read_idx
from tarflow.data.store.write import prepare

ZEROS = np.zeros((300, 20, 20), np.uint8)  # which deflate makes some hundred times smaller


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if gigabytes were a hundred thousand bytes."""
    monkeypatch.setattr(errors, "UNPACKED_BYTES", 100_000)


def test_much_of_little_is_refused_and_both_alone_are_not() -> None:
    check_unpacked("a", 1, errors.UNPACKED_BYTES)
    check_unpacked("a", errors.UNPACKED_BYTES, errors.UNPACKED_RATIO * errors.UNPACKED_BYTES)
    with pytest.raises(DataError, match="a: 1000 bytes that would unpack to 999999999999"):
        check_unpacked("a", 1000, 999_999_999_999)


@pytest.mark.usefixtures("small_room")
@pytest.mark.parametrize("key", ["images", "labels"])
def test_an_archive_is_not_unpacked_to_gigabytes(key: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"images": np.zeros((20_000, 1, 1), np.uint8), "labels": np.zeros(20_000, np.int64)}
    if key == "images":
        arrays = {"images": ZEROS}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=rf"a.npz: key '{key}': [0-9]+ bytes that would unpack to"):
        load_all(str(tmp_path / "a.npz"))


def test_labels_are_unpacked_where_they_are_as_many_as_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=ZEROS, labels=np.zeros(5_000_000))
    monkeypatch.setattr("tarflow.data.readers.npz.Archive.read", lambda *_: pytest.fail("they were unpacked"))
    with pytest.raises(DataError, match=r"key 'labels': expected 300 whole numbers, got float64 of shape \(5000000,\)"):
        load_all(str(tmp_path / "a.npz"))


def write_idx(path: Path, shape: tuple[int, ...], body: bytes) -> Path:
    data = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + body
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.usefixtures("small_room")
def test_an_idx_file_is_not_unpacked_to_gigabytes(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", ZEROS.shape, ZEROS.tobytes())
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz: [0-9]+ bytes that would unpack to 120000"):
        load(str(tmp_path))


def test_of_an_idx_file_no_more_is_unpacked_than_its_header_says(tmp_path: Path) -> None:
    path = write_idx(tmp_path / "a.gz", (2, 3, 3), bytes(60_000_000))
    reset_peak()
    before = peak()
    with pytest.raises(DataError, match="expected 34 bytes for 2x3x3 values, got more"):
        read_idx(path)
    assert peak() - before < 20_000_000


@pytest.mark.parametrize("shape", [(40_000_000,), (300, 1), (299,)])
def test_idx_labels_of_another_shape_are_not_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", (300, 20, 20), ZEROS.tobytes())
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", shape, b"")
    with pytest.raises(DataError, match="train-labels-idx1-ubyte.gz: expected 300 labels, one an image, got shape"):
        load(str(tmp_path))


def test_a_table_has_no_more_rows_than_bytes(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": pa.array([b""] * 200_000), "label": pa.array([1] * 200_000)})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: 200000 rows in [0-9]+ bytes: expected an image a row"):
        load_all(str(tmp_path / "a.parquet"))


@pytest.mark.usefixtures("small_room")
def test_a_table_is_not_unpacked_to_gigabytes(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [bytes(300_000)]}), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"a.parquet: [0-9]+ bytes that would unpack to"):
        load_all(str(tmp_path / "a.parquet"))


# --- large images ----------------------------------------------------------------------------------------------------


def encoded(mode: str, side: int = 40) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, len(mode)), np.uint8)
    Image.fromarray(pixels[..., 0] if len(mode) == 1 else pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def test_large_images_are_decoded_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]
    flatten, lock = images._flatten, threading.Lock()

    def slow(image: Image.Image, values: Values) -> Image.Image:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        with lock:
            inside[0] -= 1
        return flatten(image, values)

    monkeypatch.setattr(images, "_flatten", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(images.decode, [encoded("L")] * 8))
        assert most[0] > 1
        monkeypatch.setattr(images, "LARGE", 100)
        most[0] = 0
        list(pool.map(images.decode, [encoded("L")] * 8))
        assert most[0] == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_images_are_the_same_by_bands(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.asarray(images.decode(encoded(mode)))
    monkeypatch.setattr(images, "LARGE", 130)  # three rows at a time, and one
    assert np.array_equal(np.asarray(images.decode(encoded(mode))), whole)


def test_16_bits_are_the_same_by_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 1 << 16, (40, 7), np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    monkeypatch.setattr(images, "_ROWS", 3)
    assert np.array_equal(np.asarray(images.decode(buffer.getvalue())), (values.astype(int) + 128) // 257)


def test_of_large_images_few_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "_WINDOW_BYTES", 3000)
    made, used = [0], 0

    def read(item: int) -> Any:
        made[0] += 1
        return np.full(1000, item % 256, np.uint8)

    def items() -> Iterator[int]:
        yield from range(100)

    with ThreadPoolExecutor(4) as pool:
        for number, image in enumerate(assemble.in_order(pool, read, items())):
            assert image[0] == number
            used += 1
            assert made[0] - used <= max(assemble.THREADS, 3)
    assert used == 100


def test_images_of_other_sizes_are_not_held(tmp_path: Path) -> None:
    """They end the reading anyway, and two hundred may be under way."""
    for k in range(60):
        Image.new("L", (8, 8) if k < 40 else (2000, 2000)).save(tmp_path / f"{k:03}.png")
    reset_peak()
    before = peak()
    with pytest.raises(DataError, match=r"000.png is 8x8 and 040.png is 2000x2000"):
        load(str(tmp_path))
    assert peak() - before < 60_000_000


# --- prepared sets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda text: text[:-3], lambda text: text + b"more\0", lambda text: b""])
def test_names_that_are_not_one_an_image_are_refused(change: Any, tmp_path: Path) -> None:
    prepare("digits", tmp_path / "out", LoadOptions())
    file = tmp_path / "out" / "names.bin"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=r"names.bin: damaged, [0-9]+ names of 1797"):
        load(str(tmp_path / "out"))


def test_an_image_of_endless_rows_is_refused() -> None:
    data = b"\x89PNG\r\n\x1a\n"
    header = b"IHDR" + struct.pack(">IIBBBBB", 1, 80_000_000, 8, 0, 0, 0, 0)
    data += struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + encoded("L")[33:]
    with pytest.raises(DataError, match="80000000x1 pixels: expected at most 1048576 a side"):
        images.decode(data)
