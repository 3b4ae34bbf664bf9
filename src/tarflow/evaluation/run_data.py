"""The images of a run, opened again as its training had them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tarflow.checkpoint import Run
from tarflow.config import DataConfig
from tarflow.data.hub import PREFIX
from tarflow.data.load import ImageSet, Splits, load, load_all, load_held_out

Loading = Callable[[int, int], None]


def stored_data(run: Run) -> DataConfig:
    """What the run says of its data. Raises ValueError where it says nothing: only a model was saved."""
    if run.config.data is None:
        raise ValueError(f"{run.path}: only a model is stored; expected section `data` in its config.json")
    return run.config.data


def own_source(run: Run) -> str:
    """Where the images of the run were. Raises ValueError where they would have to be fetched.

    A run may come from anywhere, and what a file of it names is asked for before it is downloaded.
    """
    source = stored_data(run).source
    if source.startswith(PREFIX):
        raise ValueError(
            f"{run.path}: its config.json names {source}, to be downloaded; ask for that by --data {source}"
        )
    return source


def image_options(run: Run) -> dict[str, Any]:
    """The arguments of `load` and its like that make any images into those that the run's model takes."""
    model, data = run.config.model, stored_data(run)
    return {
        "image_size": model.image_shape,
        "channels": model.channels,
        "levels": run.levels,
        "class_names": data.class_names or None,
    }


def open_splits(
    run: Run, source: str | None = None, *, skip_bad: bool | None = None, progress: Loading | None = None
) -> Splits:
    """The images that a run was trained on and those it held out; or those of another `source`, split in the same way.

    Bad records are left out where `skip_bad` says so; None leaves those of its own data out where the training did. Its
    own data are streamed where they were in training.

    Raises:
        ValueError, OSError: the run does not say what its data are; they are gone, or not what its model takes.
    """
    data = stored_data(run)
    source = own_source(run) if source is None else source
    return load(
        source,
        **image_options(run),
        held_out_fraction=data.held_out_fraction,
        split_seed=data.split_seed,
        skip_bad=_leaves_out(data, source, skip_bad),
        storage=data.storage if source == data.source else "auto",
        progress=progress,
    )


def open_all(run: Run, source: str, *, skip_bad: bool | None = None) -> ImageSet:
    """Every image of a source, of all its splits, as the run's model takes them. Otherwise as `open_splits`."""
    data = stored_data(run)
    return load_all(source, **image_options(run), skip_bad=_leaves_out(data, source, skip_bad))[0]


def _leaves_out(data: DataConfig, source: str, skip_bad: bool | None) -> bool:
    """Whether bad records of `source` are left out."""
    return source == data.source and data.skip_bad if skip_bad is None else skip_bad


def open_held_out(run: Run, progress: Loading | None = None) -> ImageSet:
    """`open_splits(run).held_out`, without decoding what was trained on where the data have a split of their own.

    Its labels have the data's own numbers, not those of the run's classes.
    """
    data, options = stored_data(run), image_options(run)
    del options["class_names"]
    return load_held_out(
        own_source(run),
        **options,
        held_out_fraction=data.held_out_fraction,
        split_seed=data.split_seed,
        skip_bad=data.skip_bad,
        storage=data.storage,
        progress=progress,
    )
