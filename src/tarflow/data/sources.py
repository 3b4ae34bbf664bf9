"""Which format a name or a path is: from what a user typed to a `Source` of records, not yet decoded."""

from __future__ import annotations

import difflib
from pathlib import Path

from tarflow.data.errors import DataError
from tarflow.data.prepared import is_prepared, prepared_source
from tarflow.data.records import Source

KNOWN_NAMES = ("digits", "fashion-mnist")


def open_source(source: str) -> Source:
    """Find out what `source` is, and scan it; nothing is decoded yet."""
    if source == "digits":
        from tarflow.data.digits import open_digits

        return open_digits()
    from tarflow.data import idx

    if source == "fashion-mnist":
        return idx.open_fashion_mnist()
    if source.startswith("hub:"):
        from tarflow.data.hub import open_hub

        return open_hub(source)
    path = Path(source).expanduser()
    if not source or not path.exists():
        near = difflib.get_close_matches(source, KNOWN_NAMES, 1)
        hint = f"; perhaps {near[0]}?" if near else ""
        raise FileNotFoundError(f"{source!r}: no such path, nor one of the known names {', '.join(KNOWN_NAMES)}{hint}")
    return _open_folder(path) if path.is_dir() else _open_file(path)


def is_folder_of_images(source: str) -> bool:
    """Whether `source` is a folder whose files are images, one each, and not Parquet or IDX files, or a known name."""
    from tarflow.data import idx, imagenet

    path = Path(source).expanduser()
    if not source or source in KNOWN_NAMES or not path.is_dir() or is_prepared(source) or _parquet_files(path):
        return False
    return not any(idx.is_idx_images(file) or imagenet.is_batch(file) for file in path.iterdir())


def _open_folder(path: Path) -> Source:
    from tarflow.data import folder, idx, imagenet, parquet

    if is_prepared(str(path)):
        return prepared_source(path)
    if files := _parquet_files(path):
        return parquet.open_parquet_files(files)
    if any(idx.is_idx_images(file) for file in path.iterdir()):
        return idx.open_idx_folder(path)
    if batches := [file for file in path.iterdir() if imagenet.is_batch(file)]:
        return imagenet.open_batches(batches)
    return folder.open_folder(path)


def _parquet_files(path: Path) -> list[Path]:
    for place in (path, path / "data"):  # a snapshot of a data set of the hub has its files in data/
        if files := sorted(place.glob("*.parquet")):
            return files
    return []


def _open_file(path: Path) -> Source:
    from tarflow.data import folder, idx, imagenet, npz, parquet
    from tarflow.data.images import SUFFIXES

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet.open_parquet_file(path)
    if imagenet.is_batch(path):
        return imagenet.open_batches([path])
    if suffix == ".npz":
        return npz.open_npz(path)
    if idx.is_idx_images(path):
        return idx.open_idx_file(path)
    if suffix in SUFFIXES:
        return folder.open_image(path)
    raise DataError(
        f"{path}: expected a folder, .parquet, .npz, IDX images (*-images-idx3-ubyte[.gz]) or an image file"
    )
