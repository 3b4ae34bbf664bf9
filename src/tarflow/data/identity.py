"""Are these the images that a run was trained on? By their digests; and by their names where others have joined."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

from tarflow import storage as files
from tarflow.config import DataConfig
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.labels import composed
from tarflow.data.load import Splits, load
from tarflow.data.options import LoadOptions
from tarflow.data.readers.folder import image_names, is_run
from tarflow.data.sources import KNOWN_NAMES, is_folder_of_images, open_source
from tarflow.data.store.read import is_prepared
from tarflow.jsontext import to_json

SPLIT_FILE = "split.json.gz"
_MOST_BYTES = 1 << 28  # of names, some five million: of more, or of what only claims to be names, none are read
MOVED = "where the data have moved, name their new place by --data"


@dataclasses.dataclass(frozen=True)
class Known:
    """What a run knows of its images.

    Attributes:
        run: what messages call it. train, held_out: digests, see `ImageSet.digest`.
        names: of every image whether it is held out; None where they were not kept.
    """

    run: str
    train: str
    held_out: str
    names: Callable[[], dict[str, bool] | None]

    def matches(self, found: Splits) -> bool:
        """Whether these are the run's images, in its split."""
        return found.train.digest() == self.train and found.held_out.digest() == self.held_out


def open_known(source: str, options: LoadOptions, known: Known | None) -> tuple[Splits, str | None]:
    """`load`, and what tells the images from those that are known; None where they are the same, or none are known.

    Where others have joined them those are left out, with a `DataWarning`: a split by chance depends on how many images
    there are, so that images which were trained on would be called held out.
    """
    if known is None:
        return load(source, options), None
    difference = "their pixels, labels or split have changed"
    names = None if is_prepared(source) else known.names()
    if names is not None:
        here = frozenset(name for part in open_source(source, options).parts for name in part.names)
        spelled = {composed(name): name for name in here - names.keys()}
        names = {name if name in here else spelled.get(composed(name), name): held for name, held in names.items()}
        missing, new = names.keys() - here, len(here - names.keys())
        if missing:
            difference = f"{len(missing)} of {len(names)} are missing, the first is {min(missing)}"
        elif new:
            found = None
            with contextlib.suppress(DataError):  # of those that are not the run's
                found = load(source, options.replace(split_by_name=names))
            if found is not None and known.matches(found):
                warnings.warn(
                    f"{source}: {new} of {len(here)} images are not those that {known.run} was trained on, "
                    "and are left out",
                    DataWarning,
                    stacklevel=2,
                )
                return found, None
    found = load(source, options)
    return found, None if known.matches(found) else difference


def place_of(source: str) -> str:
    """The absolute path of a source that is one, by which it is found from every directory; "" of a name."""
    path = Path(source).expanduser()
    return os.path.abspath(path) if source and source not in KNOWN_NAMES and path.exists() else ""


def located(data: DataConfig) -> str:
    """Where a run's images are: at the place where they were, or else under the name that was given."""
    return data.place if data.place and os.path.exists(data.place) else data.source


def write_names(run: Path, splits: Splits) -> None:
    """Keep the names of a run's images in RUN/split.json.gz: what was trained on, and what was held out."""
    values = {"train": list(splits.train.names), "held_out": list(splits.held_out.names)}
    with files.replacing_file(run / SPLIT_FILE) as temporary:
        temporary.write_bytes(gzip.compress(to_json(values).encode(), mtime=0))


def read_names(run: Path) -> dict[str, bool] | None:
    """Of each name in RUN/split.json.gz whether it is held out; None where there is no such file, or it is damaged."""
    try:
        with gzip.open(run / SPLIT_FILE) as file:
            text = file.read(_MOST_BYTES + 1)
        values = json.loads(text) if len(text) <= _MOST_BYTES else None
        names = dict.fromkeys(values["train"], False) | dict.fromkeys(values["held_out"], True)  # type: ignore[index]
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, RecursionError):
        return None
    return names if names and all(isinstance(name, str) for name in names) else None


def check_run_place(out: Path, source: str) -> None:
    """Raise DataError where a new run would lie in a folder that holds some of its own images: as a run's directory it
    would be left out of them. An own directory among the images may be one."""
    place = place_of(source)
    if not place or not out.is_dir() or not out.resolve().is_relative_to(Path(place).resolve()):
        return
    if is_folder_of_images(place) and next(image_names(out), None) is not None:
        raise DataError(f"--out {out}: holds images of {source}: expected a directory of its own")


def check_outside(option: str, out: Path, source: str) -> None:
    """Raise DataError naming the option where images are to be written into a folder of images, of which they would
    become more; a run that lies in there is none of it."""
    place = place_of(source)
    root, target = Path(place).resolve(), out.resolve()
    if not place or not target.is_relative_to(root) or not is_folder_of_images(place):
        return
    between = [target, *target.parents]
    for folder in between[: between.index(root)]:
        if folder.is_dir() and is_run(set(os.listdir(folder))):
            return
    raise DataError(f"{option} {out}: in {source}, whose images it would be taken for: expected another place")
