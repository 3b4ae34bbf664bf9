"""The images of a run, opened again as its training had them, and held against what the run knows of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tarflow.checkpoint import CHECKPOINTS, Run
from tarflow.config import DataConfig
from tarflow.data.errors import DataError
from tarflow.data.identity import MOVED, Known, check_outside, located, open_known, place_of, read_names
from tarflow.data.load import ImageSet, Splits, load_all, load_held_out
from tarflow.data.options import LoadOptions
from tarflow.data.readers.hub import PREFIX

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


def known_images(data: DataConfig | None, run: Path) -> Known | None:
    """What a run, or one of its checkpoints, knows of its images; None where it is of before runs knew."""
    if data is None or not data.train_digest or not data.held_out_digest:
        return None
    place = run.parent.parent if run.parent.name == CHECKPOINTS else run
    return Known(str(run), data.train_digest, data.held_out_digest, lambda: read_names(place))


def is_own_place(data: DataConfig, source: str) -> bool:
    """Whether `source`, as it was typed, is where a run's images were."""
    place = place_of(source)
    return place == data.place if place and data.place else source == data.source


def image_options(run: Run, *, own: bool = False, **fields: Any) -> LoadOptions:
    """What any images, or the run's own, have to become for its model, split as the run's are; `fields` go first."""
    model, data = run.config.model, stored_data(run)
    size = {"image_size": model.image_shape, "channels": model.channels, "levels": run.levels}
    return LoadOptions.of(data, own=own, **size, **fields)


def open_splits(
    run: Run, source: str | None = None, *, skip_bad: bool | None = None, progress: Loading | None = None
) -> Splits:
    """The images that a run was trained on and those it held out; from their new place `source` where they have moved.

    Bad records are left out where `skip_bad` says so; None leaves them out where the training did.

    Raises:
        ValueError, OSError: the run does not say what its data are; they are gone, or not what it was trained on.
    """
    data = stored_data(run)
    known = known_images(data, run.path)
    leaves_out = data.skip_bad if skip_bad is None else skip_bad
    options = image_options(run, own=True, progress=progress, skip_bad=leaves_out)
    try:
        splits, difference = open_known(own_source(run) if source is None else source, options, known)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {MOVED}") from None
    if difference is not None:
        where = source or data.source
        raise DataError(f"{where}: not the images that {run.path} was trained on: {difference}; {MOVED}")
    return splits


def open_given(
    run: Run, source: str, *, skip_bad: bool | None = None, progress: Loading | None = None
) -> tuple[Splits, bool]:
    """The images of any `source`, split as the run's are, and whether they are the run's own.

    Of other data bad records are left out only where `skip_bad` says so. Raises as `open_splits`; the run's own place
    with other images in it is refused.
    """
    data = stored_data(run)
    if is_own_place(data, source):
        return open_splits(run, source, skip_bad=skip_bad, progress=progress), True
    known, options = known_images(data, run.path), image_options(run, progress=progress, skip_bad=bool(skip_bad))
    splits, difference = open_known(source, options, known)
    return splits, known is not None and difference is None


def open_all(run: Run, source: str, *, skip_bad: bool | None = None) -> ImageSet:
    """Every image of a source, of all its splits, as the run's model takes them. Otherwise as `open_splits`."""
    data = stored_data(run)
    leaves_out = is_own_place(data, source) and data.skip_bad if skip_bad is None else skip_bad
    return load_all(source, image_options(run, skip_bad=leaves_out))[0]


def open_held_out(run: Run, source: str | None = None, progress: Loading | None = None) -> ImageSet:
    """`open_splits(run).held_out`, without decoding what was trained on where the data have a split of their own."""
    known = known_images(stored_data(run), run.path)
    try:
        options = image_options(run, own=True, progress=progress)
        found = load_held_out(own_source(run) if source is None else source, options)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {MOVED}") from None
    except ValueError:  # perhaps of an image that has joined
        found = None
    if found is not None and (known is None or found.digest() == known.held_out):
        return found
    return open_splits(run, source, progress=progress).held_out


def check_output(run: Run, option: str, out: Path, *sources: str) -> None:
    """Raise DataError where images are to be written among those that the run was trained on, or into `sources`."""
    own = [] if run.config.data is None else [located(run.config.data)]
    for source in (*own, *sources):
        check_outside(option, out, source)
