"""Features of real images: kept under a digest of all that they depend on, and continued after an interruption."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tarflow import digests
from tarflow.data.load import ImageSet, Splits
from tarflow.digests import CacheWarning
from tarflow.evaluation.quality import reference as module
from tarflow.evaluation.quality.extractors.extractor import Extractor, unit_pixels
from tarflow.evaluation.quality.reference import open_reference, real_features
from tarflow.storage import cache_directory


class Pixels(nn.Module):
    """Features that are pixels, and how many images were asked for; after `patience` of them it is interrupted."""

    def __init__(self, patience=10**9):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.seen, self.patience = 0, patience

    def forward(self, x):
        self.seen += len(x)
        if self.seen > self.patience:
            raise KeyboardInterrupt
        return x[:, 0].flatten(1) * self.weight


def pixels(patience=10**9, digest="digest"):
    return Extractor("Pixels", "pixels", digest, 16, Pixels(patience), unit_pixels)


def images(n, seed=0, levels=17):
    found = torch.randint(0, levels, (n, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ImageSet(found, None, tuple(map(str, range(n))), levels, ())


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 10)


def files(cache: Path):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_features_are_those_of_the_stored_images_and_are_read_the_second_time(tmp_path):
    first = pixels()
    told = []
    found = real_features(images(25), first, tmp_path, lambda done, total: told.append((done, total)))
    torch.testing.assert_close(found, images(25).images.flatten(1).float() / 16)
    assert told == [(10, 25), (20, 25), (25, 25)]
    assert files(tmp_path) == ["00000.npy", "00001.npy", "00002.npy"]
    second = pixels()
    assert torch.equal(real_features(images(25), second, tmp_path), found)
    assert second.network.seen == 0 and first.network.seen == 25


def test_an_interruption_costs_one_chunk(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        real_features(images(25), pixels(patience=15), tmp_path)
    assert files(tmp_path) == ["00000.npy"]
    again = pixels()
    found = real_features(images(25), again, tmp_path)
    assert again.network.seen == 15
    torch.testing.assert_close(found, images(25).images.flatten(1).float() / 16)


def test_damaged_files_and_leftovers_are_made_again(tmp_path):
    found = real_features(images(25), pixels(), tmp_path)
    (folder,) = (tmp_path / "features").iterdir()
    (folder / "00000.npy").write_bytes(b"")
    (folder / "00001.npy").write_bytes((folder / "00001.npy").read_bytes()[:200])
    (folder / "00002.npy").write_bytes((folder / "00002.npy").read_bytes().replace(b"(5, 16)", b"(4, 20)"))
    (folder / ".00003.npy.partial-1234abcd").write_bytes(b"half")
    again = pixels()
    assert torch.equal(real_features(images(25), again, tmp_path), found)
    assert again.network.seen == 25 and files(tmp_path) == ["00000.npy", "00001.npy", "00002.npy"]


def test_no_flipped_bit_is_another_feature(tmp_path):
    found = real_features(images(10), pixels(), tmp_path)
    (file,) = (tmp_path / "features").glob("*/00000.npy")
    data = file.read_bytes()
    for place in range(0, len(data), 29):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :])
        again = pixels()
        assert torch.equal(real_features(images(10), again, tmp_path), found) and again.network.seen == 10


def test_a_cache_that_cannot_be_written_to_costs_time_and_a_line(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(CacheWarning, match="file/cache: Not a directory; nothing is kept there"):
        found = real_features(images(25), pixels(), tmp_path / "file" / "cache")
    torch.testing.assert_close(found, images(25).images.flatten(1).float() / 16)


def test_a_cache_that_is_full_is_filled_no_further(tmp_path, monkeypatch):
    def full(path, contents):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(digests, "keep", full)
    with pytest.warns(CacheWarning, match="No space left on device") as told:
        found = real_features(images(25), pixels(), tmp_path)
    assert len(told) == 1
    torch.testing.assert_close(found, images(25).images.flatten(1).float() / 16)


@pytest.mark.parametrize(
    "header", [b"{'descr': ", b"{'descr': '<f4', 'shape': (10, 10**12), 'fortran_order': 0}", b"(" * 90]
)
def test_whatever_is_in_a_file_it_is_made_again(header, tmp_path):
    found = real_features(images(25), pixels(), tmp_path)
    (folder,) = (tmp_path / "features").iterdir()
    text = header.ljust(117) + b"\n"
    contents = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
    (folder / "00001.npy").write_bytes(contents + digests.seal(contents))
    again = pixels()
    assert torch.equal(real_features(images(25), again, tmp_path), found)
    assert again.network.seen == 10


def test_two_at_once_do_not_spoil_each_other(tmp_path):
    """The first is halfway; the second reads what is kept, and clears nothing away."""
    inner, left = pixels(), []

    def meanwhile(done, total):
        if done == 20:
            (folder,) = (tmp_path / "features").iterdir()
            (folder / ".00001.npy.partial-1234abcd").write_bytes(b"the first one's")
            left.append(real_features(images(25), inner, tmp_path))
            left.append(files(tmp_path))
            (folder / ".00001.npy.partial-1234abcd").unlink()

    found = real_features(images(25), pixels(), tmp_path, meanwhile)
    assert torch.equal(left[0], found) and inner.network.seen == 15
    assert left[1] == [".00001.npy.partial-1234abcd", ".lock", "00000.npy"]
    assert files(tmp_path) == ["00000.npy", "00001.npy", "00002.npy"]


def test_whatever_features_depend_on_is_in_the_digest(tmp_path):
    real_features(images(12), pixels(), tmp_path)
    others = [
        (images(12, seed=1), pixels()),
        (images(11), pixels()),
        (dataclasses.replace(images(12), levels=256), pixels()),
        (images(12), pixels(digest="other weights")),
        (images(12), dataclasses.replace(pixels(), name="Other")),
    ]
    for chosen, extractor in others:
        real_features(chosen, extractor, tmp_path)
        assert extractor.network.seen == len(chosen)
    assert len(list((tmp_path / "features").iterdir())) == 1 + len(others)


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real_features(images(12), pixels(), None)
    assert files(tmp_path) == []


def test_the_reference_is_a_fixed_choice_of_training_images(tmp_path):
    splits = Splits(images(30), images(8, seed=1), False, ())
    found = open_reference(splits, pixels(), tmp_path, limit=12)
    assert found.features.shape == (12, 16) and found.held_out.shape == (8, 16)
    rows = {tuple(row) for row in (splits.train.images.flatten(1) / 16).tolist()}
    assert all(tuple(row) in rows for row in found.features.tolist())
    assert torch.equal(open_reference(splits, pixels(), tmp_path, limit=12).features, found.features)
    assert found.moments is found.moments and found.moments.count == 12
    assert found.digest != open_reference(splits, pixels(), tmp_path, limit=13).digest
    with pytest.raises(ValueError, match="at least two held-out images to compare with, got 1"):
        open_reference(Splits(images(30), images(1), False, ()), pixels(), tmp_path)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("TARFLOW_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("TARFLOW_CACHE")
    assert cache_directory() == tmp_path / "xdg" / "tarflow"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "tarflow"


def test_without_a_home_there_is_no_cache(monkeypatch):
    """As of a user whose number nobody knows."""
    for name in ("TARFLOW_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert cache_directory() is None


def test_the_reference_of_many_images_is_a_choice_and_not_the_first(tmp_path):
    splits = Splits(images(60), images(40, seed=1), False, ())
    found = open_reference(splits, pixels(), tmp_path, limit=15)
    for chosen, every in ((found.features, splits.train), (found.held_out, splits.held_out)):
        assert torch.equal(chosen, every.choice(15, 0).images.flatten(1).float() / 16)
        assert not torch.equal(chosen, every.images[:15].flatten(1).float() / 16)
    assert found.digest == module._digest(splits.train.choice(15, 0), pixels())


def _keep(file: Path, values: np.ndarray) -> None:
    """Keep an array with the right seal, so that only its shape and dtype tell it from features."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    digests.keep(file, buffer.getvalue())


@pytest.mark.parametrize("shape", [(10, 8), (9, 16), (10, 16, 1), (160,)])
def test_kept_features_of_another_shape_are_made_again(shape, tmp_path):
    expected = real_features(images(10), pixels(), tmp_path)
    (file,) = tmp_path.rglob("*.npy")
    _keep(file, np.zeros(shape, np.float32))
    assert torch.equal(real_features(images(10), pixels(), tmp_path), expected)
    _keep(file, np.zeros((10, 16)))  # float64
    assert torch.equal(real_features(images(10), pixels(), tmp_path), expected)
