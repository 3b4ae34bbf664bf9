"""The store that is made on its own: the images that memory would hold, made once, trusted only where it is sound."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch

from small_runs import write_images
from tarflow.data import load as load_module
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.load import load, load_held_out
from tarflow.data.options import LoadOptions
from tarflow.data.store import write
from tarflow.data.store.read import MANIFEST_FILE, NAMES_FILE, PIXELS_FILE
from tarflow.digests import CacheWarning

ONCE = r"photos: 40 images are decoded once, into .*images/[0-9a-f]{32} \(0.0 GB\)"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images that are too many for the memory."""
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(load_module, "MEMORY_SHARE", 0.0)
    return write_images(tmp_path / "photos", 40)


def store(photos: Path) -> Path:
    (found,) = (photos.parent / "cache" / "images").iterdir()
    return found


def test_it_is_made_once_and_holds_what_memory_would(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(DataWarning, match=ONCE):
        first = load(str(photos))
    made = store(photos).stat().st_mtime_ns
    for again in (load(str(photos)), load(str(photos), image_size=4, channels=1, levels=256)):
        assert again.train.mapped and not again.own_split and torch.equal(again.train.images, first.train.images)
    assert torch.equal(load_held_out(str(photos), LoadOptions()).images, first.held_out.images)
    assert store(photos).stat().st_mtime_ns == made
    with pytest.warns(DataWarning, match=ONCE):
        load(str(photos), split_seed=1)
    monkeypatch.setattr(load_module, "MEMORY_SHARE", 0.5)
    memory = load(str(photos))
    for found, expected in ((first.train, memory.train), (first.held_out, memory.held_out)):
        assert torch.equal(found.images, expected.images) and list(found.names) == list(expected.names)
        assert found.digest() == expected.digest() and found.known_digest is not None


def test_another_file_makes_another_store(photos: Path) -> None:
    with pytest.warns(DataWarning, match=ONCE):
        load(str(photos))
    os.utime(photos / "003.png", (1, 1))
    with pytest.warns(DataWarning, match=ONCE):
        load(str(photos))


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "link", "file"])
def test_what_is_not_what_was_written_is_made_again(damage: str, photos: Path) -> None:
    with pytest.warns(DataWarning, match=ONCE):
        expected = load(str(photos)).train.images.clone()
    place, elsewhere = store(photos), photos.parent / "elsewhere"
    if damage == "bit":
        text = (place / NAMES_FILE).read_bytes()
        (place / NAMES_FILE).write_bytes(bytes([text[0] ^ 1]) + text[1:])
    elif damage == "cut":
        os.truncate(place / PIXELS_FILE, 5)
    elif damage == "gone":
        (place / MANIFEST_FILE).unlink()
    else:
        place.rename(elsewhere)
        place.symlink_to(elsewhere) if damage == "link" else place.write_bytes(b"a file")
    with pytest.warns(DataWarning, match=ONCE):
        assert torch.equal(load(str(photos)).train.images, expected)
    assert not place.is_symlink() and place.is_dir()
    if damage == "link":
        assert sorted(path.name for path in elsewhere.iterdir()) == sorted(path.name for path in place.iterdir())


def test_a_broken_image_is_named_before_anything_is_trained_on(photos: Path) -> None:
    (photos / "007.png").write_bytes(b"no image")
    with warnings.catch_warnings(action="ignore"):
        with pytest.raises(DataError, match=r"1 of 40 images cannot be read \(skip_bad .*007.png: not an image"):
            load(str(photos))
        assert list((photos.parent / "cache" / "images").iterdir()) == []
        found = load(str(photos), skip_bad=True)
        assert len(found.train) + len(found.held_out) == 39 and [name for name, _ in found.skipped] == ["007.png"]
        with pytest.raises(DataError, match=r"1 images were skipped \(--skip-bad\), the first is 007.png"):
            load(str(photos))


def test_without_a_place_for_it_the_images_go_into_memory(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos.parent / "cache").write_bytes(b"a file")
    with pytest.warns(CacheWarning, match="nothing is kept there"):
        assert not load(str(photos)).train.mapped
    (photos.parent / "cache").unlink()
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: type("", (), {"free": 100}))
    with pytest.warns(CacheWarning, match="0.0 GB are needed for .*photos, 0.0 GB are free; nothing is kept there"):
        assert not load(str(photos)).train.mapped
    monkeypatch.setattr(write.storage, "cache_directory", lambda: None)
    assert not load(str(photos)).train.mapped
