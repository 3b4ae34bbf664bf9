"""The images of a run: opened again as its training had them, and held against what the run knows of them.

They are known by their digests; and by their names where others have joined.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tarflow.checkpoint import CHECKPOINTS, Run, read_names
from tarflow.config import DataConfig
from tarflow.data.errors import DataError, DataWarning
from tarflow.data.load import ImageSet, Splits, load, load_all, load_held_out
from tarflow.data.names import composed
from tarflow.data.options import LoadOptions
from tarflow.data.readers.folder import image_names, is_run
from tarflow.data.readers.hub import PREFIX
from tarflow.data.sources import KNOWN_NAMES, is_folder_of_images, open_source
from tarflow.data.store.read import is_prepared

MOVED = "where the data have moved, name their new place by --data"
Loading = Callable[[int, int], None]


def stored_data(run: Run) -> DataConfig:
    """What the run says of its data. Raises ValueError where it says nothing: only a model was saved."""
    if run.config.data is None:
        raise ValueError(f"{run.path}: only a model is stored; expected section `data` in its config.json")
    return run.config.data


def own_source(run: Run) -> str:
    """Where the images of the run are. Raises ValueError where they would have to be fetched.

    A run may come from anywhere, and what a file of it names is asked for before it is downloaded.
    """
    source = located(stored_data(run))
    if source.startswith(PREFIX):
        raise ValueError(
            f"{run.path}: its config.json names {source}, to be downloaded; ask for that by --data {source}"
        )
    return source


@dataclass(frozen=True)
class Known:
    """What a run, or one of its checkpoints, knows of its images: their digests, and their names in a file of the run.

    With `exact` no others may have joined them.
    """

    run: Path
    data: DataConfig
    exact: bool = False

    def matches(self, found: Splits) -> bool:
        """Whether these are the run's images, in its split."""
        digests = found.train.digest(), found.held_out.digest()
        return digests == (self.data.train_digest, self.data.held_out_digest)

    def names(self) -> dict[str, bool] | None:
        """Of every image whether it is held out; None where they were not kept, or others make a difference anyway."""
        if self.exact:
            return None
        return read_names(self.run.parent.parent if self.run.parent.name == CHECKPOINTS else self.run)


def known_images(data: DataConfig | None, run: Path, exact: bool = False) -> Known | None:
    """What is known of a run's images; None where it is of before runs knew."""
    return Known(run, data, exact) if data is not None and data.train_digest and data.held_out_digest else None


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


def is_own_place(data: DataConfig, source: str) -> bool:
    """Whether `source`, as it was typed, is where a run's images were."""
    place = place_of(source)
    return place == data.place if place and data.place else source == data.source


def image_options(
    run: Run, source: str = "", *, own: bool = False, conditions_from: str | None = None, **fields: Any
) -> LoadOptions:
    """What any images, or the run's own, have to become for its model, split as the run's are; `fields` go first.

    Their numbers are those of the table `conditions_from`, where one is given, else of the run's own.
    """
    model, data = run.config.model, stored_data(run)
    table: dict[str, Any] = {"conditions_from": located_table(data, source)}
    if conditions_from is not None:
        check_numbers(run, "--conditions-from")
        table = {"conditions_from": conditions_from, "conditions_needed": True}
    size = {"image_size": model.image_shape, "channels": model.channels, "levels": run.levels}
    return LoadOptions.of(data, own=own, **size, **table, **fields)


def located_table(data: DataConfig, source: str = "") -> str:
    """The table of a run's numbers: where it was, or else under its name among its images, or beside these."""
    table, place = Path(data.conditions_from).expanduser(), Path(source or located(data)).expanduser()
    moved = (folder / table.name for folder in (place, place.parent))
    if not data.conditions_from or table.exists():
        return data.conditions_from
    return next((str(path) for path in moved if path.is_file()), data.conditions_from)


def numbers_of(run: Run) -> tuple[str, ...]:
    """The names of the numbers that a run is conditioned on."""
    return run.config.data.numbers if run.config.data else ()


def check_numbers(run: Run, option: str) -> None:
    """Raise ValueError that names an option about numbers where the run is not conditioned on any."""
    if not numbers_of(run):
        raise ValueError(f"{option}: {run.path} is not conditioned on numbers")


def open_splits(
    run: Run,
    source: str | None = None,
    *,
    skip_bad: bool | None = None,
    progress: Loading | None = None,
    conditions_from: str | None = None,
) -> Splits:
    """The images that a run was trained on and those it held out; from their new place `source` where they have moved,
    as the table of their numbers may have, to `conditions_from`.

    Bad records are left out where `skip_bad` says so; None leaves them out where the training did.

    Raises:
        ValueError, OSError: the run does not say what its data are; they are gone, or not what it was trained on.
    """
    data = stored_data(run)
    known = known_images(data, run.path)
    leaves_out = data.skip_bad if skip_bad is None else skip_bad
    source = own_source(run) if source is None else source
    table: dict[str, Any] = {"conditions_from": conditions_from}
    options = image_options(run, source, own=True, progress=progress, skip_bad=leaves_out, **table)
    try:
        splits, difference = open_known(source, options, known)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {MOVED}") from None
    if difference is not None:
        raise DataError(f"{source}: not the images that {run.path} was trained on: {difference}; {MOVED}")
    return splits


def open_given(
    run: Run,
    source: str,
    *,
    skip_bad: bool | None = None,
    progress: Loading | None = None,
    conditions_from: str | None = None,
) -> tuple[Splits, bool]:
    """The images of any `source`, split as the run's are, and whether they are the run's own.

    Their numbers are those of the table `conditions_from`; without one, of the run's, where that has all of them.

    Of other data bad records are left out only where `skip_bad` says so. Raises as `open_splits`; the run's own place
    with other images in it is refused.
    """
    data = stored_data(run)
    table: dict[str, Any] = {"conditions_from": conditions_from}
    if is_own_place(data, source):
        return open_splits(run, source, skip_bad=skip_bad, progress=progress, **table), True
    known = known_images(data, run.path)
    options = image_options(run, source, progress=progress, skip_bad=bool(skip_bad), **table)
    splits, difference = open_known(source, options, known)
    return splits, known is not None and difference is None


def open_all(run: Run, source: str, *, skip_bad: bool | None = None, conditions_from: str | None = None) -> ImageSet:
    """Every image of a source, of all its splits, as the run's model takes them. Otherwise as `open_splits`."""
    data = stored_data(run)
    leaves_out = is_own_place(data, source) and data.skip_bad if skip_bad is None else skip_bad
    options = image_options(run, source, skip_bad=leaves_out, conditions_from=conditions_from)
    return load_all(source, options)[0]


def open_held_out(run: Run, source: str | None = None, progress: Loading | None = None) -> ImageSet:
    """`open_splits(run).held_out`, without decoding what was trained on where the data have a split of their own."""
    known = known_images(stored_data(run), run.path)
    try:
        where = own_source(run) if source is None else source
        found = load_held_out(where, image_options(run, where, own=True, progress=progress))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {MOVED}") from None
    except ValueError:  # perhaps of an image that has joined
        found = None
    if found is not None and (known is None or found.digest() == known.data.held_out_digest):
        return found
    return open_splits(run, source, progress=progress).held_out


def check_outside(option: str, out: Path, source: str, *, run: bool = False) -> None:
    """Raise DataError naming the option where what is written to `out` would mix with the folder of images `source`.

    Images in there would become more of its own, unless they are in a run. A `run` may begin in there, but not in a
    directory that holds some of the images: as a run's directory it would be left out of them.
    """
    place = place_of(source)
    root, target = Path(place).resolve(), out.resolve()
    if not place or not target.is_relative_to(root) or not is_folder_of_images(place):
        return
    if run:
        if out.is_dir() and next(image_names(out), None) is not None:
            raise DataError(f"{option} {out}: holds images of {source}: expected a directory of its own")
        return
    between = [target, *target.parents]
    if not any(folder.is_dir() and is_run(set(os.listdir(folder))) for folder in between[: between.index(root)]):
        raise DataError(f"{option} {out}: in {source}, whose images it would be taken for: expected another place")


def check_output(run: Run, option: str, out: Path, *sources: str) -> None:
    """Raise DataError where images are to be written among those that the run was trained on, or into `sources`."""
    own = [] if run.config.data is None else [located(run.config.data)]
    for source in (*own, *sources):
        check_outside(option, out, source)
