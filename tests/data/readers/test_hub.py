"""Files elsewhere, and sets that the library `datasets` finds: from a file system in memory, and from local folders."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from tarflow.data.errors import DataError, DataWarning
from tarflow.data.images import decode
from tarflow.data.load import load
from tarflow.data.readers import parquet
from tarflow.data.readers.hub import open_hub
from tarflow.data.readers.parquet import open_splits
from tarflow.data.records import Records, RemoteFile, Source


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, 0, 255 - value)).save(buffer, "PNG")
    return buffer.getvalue()


def table(start: int, count: int, image: str = "img") -> Any:
    features = (
        '{"info": {"features": {"%s": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}'
    )
    images = [{"bytes": png(k), "path": None} for k in range(start, start + count)]
    found = pa.table({image: images, "label": [k % 2 for k in range(start, start + count)]})
    return found.replace_schema_metadata({"huggingface": features % image})


@pytest.fixture
def remote() -> Source:
    """Two shards to learn from and one held out, in the file system of fsspec that lives in memory."""
    system = MemoryFileSystem()
    system.store.clear()
    for name, start, count in (("train-0", 0, 20), ("train-1", 20, 15), ("test-0", 35, 6)):
        with system.open(f"memory://set/{name}.parquet", "wb") as file:
            pq.write_table(table(start, count), file, row_group_size=6)
    urls = {"train": ["train-0", "train-1"], "test": ["test-0"]}
    return open_splits(
        {split: [RemoteFile(f"memory://set/{name}.parquet") for name in names] for split, names in urls.items()}  # type: ignore[misc]
    )


def test_files_elsewhere_are_read_where_they_lie(remote: Source) -> None:
    assert remote.class_names == ("a", "b") and remote.remote
    train, held_out = remote.parts
    assert train.names[21] == "train-1.parquet:1" and len(held_out) == 6
    assert [int(decode(data).getpixel((0, 0))[0]) for data in train] == list(range(35))  # type: ignore[arg-type, index]
    assert [int(decode(data).getpixel((0, 0))[0]) for data in train.read([3, 22])] == [3, 22]  # type: ignore[arg-type, index]


def test_what_is_far_away_is_kept_in_a_store(remote: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path))
    monkeypatch.setattr("tarflow.data.load.open_measured", lambda *_: remote)
    with pytest.warns(DataWarning, match=r"set: 41 images are decoded once, into .*images.* \(0.0 GB\)"):
        first = load("set")
    monkeypatch.setattr(Records, "__iter__", lambda _: pytest.fail("it was read again"))
    again = load("set", image_size=4, channels=3)
    for found in (first, again):
        assert found.train.mapped and found.own_split and found.train.labels is not None
        assert sorted(found.train.images[:, 0, 0, 0].tolist()) == list(range(35))
        assert found.train.labels.tolist() == [k % 2 for k in range(35)]
        assert found.train.digest() == first.train.digest()


def test_what_the_keeper_says_of_a_file_is_in_the_digest(remote: Source) -> None:
    before = remote.files_digest()
    assert remote.files_digest() == before
    with MemoryFileSystem().open("memory://set/train-1.parquet", "ab") as file:
        file.write(b"more")
    assert remote.files_digest() != before


def test_a_network_that_fails_is_asked_again_and_then_named(remote: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "PAUSE", 0)
    rows = [24, 25]
    expected, real, failures = list(remote.parts[0].read(rows)), MemoryFileSystem.open, []

    def unsteady(self: Any, path: str, *arguments: Any, **named: Any) -> Any:
        if len(failures) < 3:
            failures.append(path)
            raise OSError(110, "Connection timed out")
        return real(self, path, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, "open", unsteady)
    assert list(remote.parts[0].read(rows)) == expected and len(failures) == 3

    def down(*arguments: Any, **named: Any) -> Any:
        raise OSError(110, "Connection timed out")

    monkeypatch.setattr(MemoryFileSystem, "open", down)
    with pytest.raises(DataError, match="memory://set/train-1.parquet: .*Connection timed out"):
        list(remote.parts[0].read(rows))


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hub:owner/name: needs the library datasets: pip install 'tarflow\[hub\]'"):
        load("hub:owner/name")
    with pytest.raises(DataError, match="hub:: expected hub:OWNER/NAME"):
        open_hub("hub:")


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A snapshot of a set, as the hub has them."""
    pytest.importorskip("datasets", reason="the extra [hub] is not installed")
    (tmp_path / "set" / "data").mkdir(parents=True)
    pq.write_table(table(0, 20), tmp_path / "set" / "data" / "train-00000-of-00001.parquet", row_group_size=6)
    pq.write_table(table(20, 6), tmp_path / "set" / "data" / "test-00000-of-00001.parquet", row_group_size=6)
    return tmp_path / "set"


@pytest.mark.extra
def test_a_set_that_datasets_finds_is_that_of_its_files(local: Path) -> None:
    found, expected = load(f"hub:{local}"), load(str(local))
    assert torch.equal(found.train.images, expected.train.images) and found.train.names == expected.train.names
    assert found.train.class_names == ("a", "b") and len(found.held_out) == 6


@pytest.mark.extra
def test_sets_of_other_files_and_no_sets_are_errors(local: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words")
    with pytest.raises(DataError, match=r"its files are of the kind text, and only Parquet .*@refs/convert/parquet"):
        load(f"hub:{tmp_path / 'texts'}")
    with pytest.raises(DataError, match="hub:.*nowhere/at-all: .*nowhere"):
        load(f"hub:{tmp_path / 'nowhere' / 'at-all'}")
