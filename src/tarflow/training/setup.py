"""From a recipe's sections and the data to the full config of a run."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from tarflow.architecture import joined
from tarflow.config import (
    ConfigError,
    DataConfig,
    RunConfig,
    TarFlowConfig,
    TrainingConfig,
    from_dict,
)
from tarflow.data.errors import DataWarning
from tarflow.data.load import Splits
from tarflow.data.options import LoadOptions
from tarflow.data.sets import ImageSet
from tarflow.data.sources import common_shape, open_measured, open_source
from tarflow.data.store.read import is_prepared, read_manifest
from tarflow.recipes import Sections
from tarflow.run_data import MOVED, Known, located, located_table, open_known, place_of


def open_data(
    sections: Sections, progress: Callable[[int, int], None] | None = None, known: Known | None = None
) -> Splits:
    """Load the data that the sections `data` and `model` (image size, channels) of a recipe ask for.

    Raises ConfigError where they are not those that are `known`, of a run that is to go on.
    """
    data = from_dict(DataConfig, sections.get("data", {}), "data")
    model = sections.get("model", {})
    size = model.get("image_size")
    options = LoadOptions.of(
        data,
        image_size=tuple(size) if isinstance(size, list) else size,
        channels=model.get("channels"),
        levels=data.levels if "levels" in sections.get("data", {}) else None,
        conditions_from=located_table(data),
        progress=progress,
    )
    found, difference = open_known(located(data), options, known)
    if known is not None and difference is not None:
        raise ConfigError(
            f"data.source: the training images are not those that {known.run} was trained on: {data.source}: "
            f"{difference}; {MOVED}"
        )
    return found


def follow_data(sections: Sections, typed: Collection[str]) -> dict[str, dict[str, Any]]:
    """The sections with the data's own channels, size and range of values, where they were not `typed`.

    A recipe's size is the largest: smaller images keep theirs, if patches divide it, and are enlarged only with a
    `DataWarning`. Images of several sizes get the recipe's, and a prepared set has its own.
    """
    found = {name: dict(values) for name, values in sections.items()}
    model = found.setdefault("model", {})
    if "channels" not in typed:
        model.pop("channels", None)
    data = from_dict(DataConfig, found.get("data", {}), "data")
    if is_prepared(located(data)):
        found["data"] |= _prepared_by(data, typed)
    elif data.value_range in ("auto", "percentile"):
        found["data"]["value_range"] = open_measured(located(data), LoadOptions.of(data)).value_range
    size, patch = model.get("image_size"), model.get("patch_size")
    shape = common_shape(open_source(located(data), LoadOptions.of(data)))
    if size is None or shape is None:
        return found
    if data.crop_from is not None:
        return found  # the windows are of the size that was asked for
    own = shape[1:]
    height, width = (size, size) if isinstance(size, int) else size
    if "image_size" not in typed and (
        is_prepared(located(data)) or (own[0] <= height and own[1] <= width and _has_patches(own, patch))
    ):
        model["image_size"] = own[0] if own[0] == own[1] else own
    elif own[0] < height or own[1] < width:
        warnings.warn(
            f"{data.source}: images of {own[0]}x{own[1]} are enlarged to {height}x{width}; --image-size takes another",
            DataWarning,
            stacklevel=2,
        )
    return found


def _has_patches(size: tuple[int, int], patch: Any) -> bool:
    """Whether images of a size have several whole patches; where the patch is not known, nothing speaks against it."""
    if not isinstance(patch, int) or patch < 1:
        return True
    return size[0] % patch == size[1] % patch == 0 and size[0] * size[1] > patch * patch


def _prepared_by(data: DataConfig, typed: Collection[str]) -> dict[str, Any]:
    """How the images of a prepared set were made. ConfigError where the run asks for something else."""
    manifest = read_manifest(Path(located(data)).expanduser())
    own = {name: getattr(manifest, name) for name in ("value_range", "aspect", "pad_with")}
    for name, have in own.items():
        want = getattr(data, name)
        meant = want == have or (name.replace("_", " "), repr(want)) in manifest.asked
        if not meant and (name in typed or want != getattr(DataConfig, name)):
            raise ConfigError(
                f"data.{name}: {data.source} was prepared with {have}, got {want}; prepare it anew with another"
            )
    return own


def check_sections(sections: Sections) -> TrainingConfig:
    """The training that is asked for; ConfigError naming the field where the sections cannot work, whatever the data.

    It costs nothing, and is to be done before the data are read. `resolve` says the rest.
    """
    model = dict(sections.get("model", {}))
    if model.get("image_size") is None and isinstance(model.get("patch_size"), int):
        model["image_size"] = 2 * max(1, model["patch_size"])  # of four patches, as those of any images that fit
    from_dict(TarFlowConfig, model, "model")
    training = _training(sections)
    _check_windows(sections, from_dict(DataConfig, sections.get("data", {}), "data"))
    return training


def _check_windows(sections: Sections, data: DataConfig) -> None:
    """ConfigError where windows are to be cut, and nobody says of what size."""
    if data.crop_from is not None and sections.get("model", {}).get("image_size") is None:
        raise ConfigError("data.crop_from: expected --image-size besides, that of the windows, got none")


def _training(sections: Sections) -> TrainingConfig:
    training = from_dict(TrainingConfig, sections.get("training", {}), "training")
    if training.steps is None and training.epochs is None:
        raise ConfigError("training.steps: missing; give steps or epochs")
    return training


def resolve(sections: Sections, splits: Splits) -> RunConfig:
    """The config of a run: what the recipe says, and what follows from the data where it says nothing.

    Raises ConfigError naming the field where they contradict each other.
    """
    train = splits.train
    training = _training(sections)
    data = from_dict(DataConfig, sections.get("data", {}), "data")
    conditional = data.conditional and train.labels is not None and len(train.class_names) > 0
    numbers = train.number_names
    if conditional:
        _warn_of_gaps(data.source, train)
    data = dataclasses.replace(
        data,
        levels=train.levels,
        class_names=train.class_names if conditional else (),
        variant=data.variant or splits.variant,
        conditions_from=place_of(data.conditions_from) or data.conditions_from,
        conditions=",".join(numbers),
        place=data.place or place_of(data.source),
        train_digest=train.digest(),
        held_out_digest=splits.held_out.digest(),
    )

    _check_windows(sections, data)
    model = dict(sections.get("model", {}))
    channels, height, width = train.image_shape
    model.setdefault("image_size", height if height == width else (height, width))
    model.setdefault("channels", channels)
    if data.crop_padding >= min(height, width):
        raise ConfigError(
            f"data.crop_padding: expected less than a side of the images, {height}x{width}, got {data.crop_padding}"
        )
    classes = len(train.class_names) if conditional else 0
    known = joined(classes, len(numbers))
    alone = 0 if numbers else classes  # what a config counts are classes that are all of the condition
    if model.setdefault("num_classes", alone) != alone:
        raise ConfigError(f"model.num_classes: the data have {classes} classes to learn, got {model['num_classes']}")
    if numbers and model.get("condition", "auto") == "auto":
        model["condition"] = known
    if model.get("condition", "auto") not in ("auto", known):
        raise ConfigError(
            f"model.condition: expected auto or {known}, which is what the data have, got {model['condition']!r}; "
            "other conditions are given to flow.fit(x, c)"
        )

    return RunConfig(from_dict(TarFlowConfig, model, "model"), data, training)


def _warn_of_gaps(source: str, train: ImageSet) -> None:
    """A `DataWarning` that names the classes without a training image: nothing is learned of them."""
    assert train.labels is not None
    counts = torch.bincount(train.labels[train.labels >= 0], minlength=len(train.class_names))
    empty = [name for name, count in zip(train.class_names, counts.tolist(), strict=False) if not count]
    if empty:
        few = ", ".join(empty[:10]) + (", …" if len(empty) > 10 else "")
        warnings.warn(
            f"{source}: {len(empty)} of {len(train.class_names)} classes have no training image: {few}",
            DataWarning,
            stacklevel=3,
        )
