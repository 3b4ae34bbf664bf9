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

from tarflow.data import parquet
from tarflow.data.errors import DataError
from tarflow.data.feed import Feed
from tarflow.data.fingerprint import files_digest
from tarflow.data.hub import RemoteFile, open_hub
from tarflow.data.load import load, load_or_stream
from tarflow.data.parquet import open_parquet_splits
from tarflow.data.records import Source
from tarflow.data.request import Request
from tarflow.data.streamed import StreamedSplits, open_streamed


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
    return open_parquet_splits(
        {split: [RemoteFile(f"memory://set/{name}.parquet") for name in names] for split, names in urls.items()}  # type: ignore[misc]
    )


def test_files_elsewhere_are_streamed_from_where_they_lie(remote: Source) -> None:
    assert remote.class_names == ("a", "b")
    splits = open_streamed("set", remote, Request(), held_out_fraction=0.1, split_seed=0)
    assert splits.train.names[21] == "train-1.parquet:1" and len(splits.held_out) == 6
    feed = Feed(splits.train, batch_size=35, seed=0, labelled=True, window=10)
    pixels, labels = feed.batch(0)
    assert labels is not None
    assert sorted(pixels[:, 0, 0, 0].tolist()) == list(range(35))
    assert torch.equal(labels, pixels[:, 0, 0, 0].long() % 2)


def test_what_the_keeper_says_of_a_file_is_in_the_digest(remote: Source) -> None:
    before = files_digest(remote)
    assert files_digest(remote) == before
    with MemoryFileSystem().open("memory://set/train-1.parquet", "ab") as file:
        file.write(b"more")
    assert files_digest(remote) != before


def test_a_network_that_fails_is_asked_again_and_then_named(remote: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "PAUSE", 0)
    group = (remote.parts[0].groups or ())[4]
    expected, real, failures = group.read(), MemoryFileSystem.open, []

    def unsteady(self: Any, path: str, *arguments: Any, **named: Any) -> Any:
        if len(failures) < 3:
            failures.append(path)
            raise OSError(110, "Connection timed out")
        return real(self, path, *arguments, **named)

    monkeypatch.setattr(MemoryFileSystem, "open", unsteady)
    assert group.read() == expected and len(failures) == 3

    def down(*arguments: Any, **named: Any) -> Any:
        raise OSError(110, "Connection timed out")

    monkeypatch.setattr(MemoryFileSystem, "open", down)
    with pytest.raises(DataError, match="memory://set/train-1.parquet: .*Connection timed out"):
        group.read()


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


def test_a_set_that_datasets_finds_is_that_of_its_files(local: Path) -> None:
    found, expected = load(f"hub:{local}"), load(str(local))
    assert torch.equal(found.train.images, expected.train.images) and found.train.names == expected.train.names
    assert found.train.class_names == ("a", "b") and len(found.held_out) == 6
    split = {"held_out_fraction": 0.1, "split_seed": 0}
    streamed = load_or_stream(f"hub:{local}", Request(), storage="stream", **split)
    assert isinstance(streamed, StreamedSplits)
    assert sorted(Feed(streamed.train, batch_size=20, seed=0, labelled=True).batch(0)[0][:, 0, 0, 0].tolist()) == list(
        range(20)
    )


def test_sets_of_other_files_and_no_sets_are_errors(local: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words")
    with pytest.raises(DataError, match=r"its files are of the kind text, and only Parquet .*@refs/convert/parquet"):
        load(f"hub:{tmp_path / 'texts'}")
    with pytest.raises(DataError, match="hub:.*nowhere/at-all: .*nowhere"):
        load(f"hub:{tmp_path / 'nowhere' / 'at-all'}")
