"""What the networks of any flow may be: the tables of transforms and of conditions, and the checks that every kind of
config shares.

It waits for no library, so that the command line knows the names without importing torch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tarflow.fields import ConfigError, check

BOUND = 4.0
"""The bound of the log-scale where nothing is said: a factor of 55 a block. Trained models stay well within it."""


class TransformEntry(NamedTuple):
    """Where the class of a transform is, "module:class", whether it changes volumes, and which transform it is where
    its last parameters are zero: it has those of that one first."""

    place: str
    scales: bool
    extends: str = ""


TRANSFORMS = {  # names only, so that the command line knows them without importing torch
    "affine": TransformEntry("tarflow.model.transform:Affine", scales=True),
    "additive": TransformEntry("tarflow.model.transform:Additive", scales=False),
    "spline": TransformEntry("tarflow.model.spline:Spline", scales=True, extends="affine"),
}

BY_NUMBER = "-by-number"
"""Behind the name of a transform: the numbers of a token one after the other (`model.by_number`)."""

MIXED = "-mixed"
"""Behind that: a triangular matrix in front of the block, which mixes the numbers of each token (`model.mixing`)."""


class ConditionEntry(NamedTuple):
    """Where the class of a condition is, "module:class", and which sizes stand behind its name, such as "T:D"."""

    place: str
    sizes: str


CONDITIONS = {  # names only, as above
    "none": ConditionEntry("tarflow.model.condition:Condition", ""),
    "classes": ConditionEntry("tarflow.model.condition:Classes", "NUMBER"),
    "vector": ConditionEntry("tarflow.model.numeric:Vector", "N"),
    "tokens": ConditionEntry("tarflow.model.prefix:GivenTokens", "T:D"),
    "image": ConditionEntry("tarflow.model.prefix:GivenImage", "C:H:W:P"),
    "aligned": ConditionEntry("tarflow.model.aligned:AlignedTokens", "T:D"),
    "aligned-image": ConditionEntry("tarflow.model.aligned:AlignedImage", "C:H:W:P"),
}

# Beyond what anybody trains, and within what PyTorch can count: a damaged number is an error, not a day of waiting.
LARGEST, MOST_LAYERS, MOST_BINS = 1 << 20, 4096, 256


def transform_entry(name: str) -> TransformEntry:
    """The line of the table that the name of a transform stands for; KeyError where there is none."""
    return TRANSFORMS[plain(name)]


def plain(name: str) -> str:
    """The name of a transform without what stands behind it."""
    return name.removesuffix(MIXED).removesuffix(BY_NUMBER)


def starts_as(name: str, source: str) -> bool:
    """Whether a block with the transform `name` can start as one with `source` is: with the parameters that it adds at
    zero, it is that block. Mixing can be added, an order of the numbers, and a spline to an affine map.

    >>> starts_as("spline-by-number-mixed", "affine"), starts_as("affine", "spline")
    (True, False)
    """
    if source.endswith(MIXED):
        return name.endswith(MIXED) and starts_as(name.removesuffix(MIXED), source.removesuffix(MIXED))
    name = name.removesuffix(MIXED)
    if source.endswith(BY_NUMBER):
        return name == source
    return source in (plain(name), TRANSFORMS[plain(name)].extends)


def check_network(config: Any) -> None:
    """Raise ConfigError unless the fields that any flow's Transformers have fit each other."""
    for name in ("width", "head_dim", "expansion"):
        check(1 <= getattr(config, name) <= LARGEST, name, f"1 to {LARGEST}", getattr(config, name))
    check(config.width % config.head_dim == 0, "width", f"a multiple of head_dim {config.head_dim}", config.width)
    layers = config.layers
    check(bool(layers) and min(layers) >= 1, "layers", "at least one block, each of at least one layer", layers)
    check(sum(layers) <= MOST_LAYERS, "layers", f"at most {MOST_LAYERS} layers in all", layers)


def check_transforms(config: Any) -> None:
    """Raise ConfigError unless the transforms of any flow's blocks are known, and their fields make sense."""
    for name in config.transforms:
        check_transform("transforms", name)
    check(1 <= config.bins <= MOST_BINS, "bins", f"1 to {MOST_BINS}", config.bins)
    check(0 < config.interval < math.inf, "interval", "a positive number", config.interval)


def check_transform(field: str, name: str) -> None:
    """Raise ConfigError unless there is a transform of that name."""
    known = plain(name) in TRANSFORMS
    check(known, field, f"one of {', '.join(TRANSFORMS)}, which {BY_NUMBER}, {MIXED} or both may follow", name)


def bound_of(value: float | str | None, scales: bool) -> float | None:
    """The bound that "auto", "none" or a number comes to, where some transform `scales` or none does."""
    if value == "auto":
        return BOUND if scales else None
    if value is None or value == "none":
        return None
    assert not isinstance(value, str)
    check(value > 0 and math.isfinite(value), "log_scale_bound", "a positive number", value)
    if not scales:
        raise ConfigError("log_scale_bound: the additive transform has no log-scale to bound")
    return value


def joined(classes: int, numbers: int) -> str:
    """The condition of so many classes and numbers, 0 for none.

    >>> joined(10, 3), joined(0, 0)
    ('classes:10+vector:3', 'none')
    """
    return "+".join([f"classes:{classes}"] * bool(classes) + [f"vector:{numbers}"] * bool(numbers)) or "none"


def condition_parts(condition: str) -> list[tuple[str, tuple[int, ...]]]:
    """The names of what a config conditions on, and their sizes; ConfigError where there is none of that name.

    >>> condition_parts("classes:10+vector:3")
    [('classes', (10,)), ('vector', (3,))]
    """
    parts = []
    for part in condition.split("+"):
        name, *behind = part.split(":")
        entry = CONDITIONS.get(name)
        sizes = tuple(int(size) for size in behind if size.isascii() and size.isdigit() and 0 < len(size) < 8)
        known = entry is not None and len(sizes) == len(behind) == len(entry.sizes.split(":") if entry.sizes else ())
        if not known or not all(1 <= size <= LARGEST for size in sizes) or (name == "none" and part != condition):
            forms = ", ".join(f"{name}:{entry.sizes}" if entry.sizes else name for name, entry in CONDITIONS.items())
            raise ConfigError(f"condition: expected {forms}, or several joined by +, got {condition!r}")
        if name in ("image", "aligned-image"):
            _, height, width, patch = sizes
            divides = height % patch == 0 and width % patch == 0
            check(divides, "condition", f"a patch size that divides {height}x{width}", condition)
        parts.append((name, sizes))
    return parts


def check_aligned(condition: str, tokens: int, grid: tuple[int, int] | None = None) -> None:
    """Raise ConfigError unless what `condition` has for each token is for as many tokens as a flow has, and where these
    are patches of images, for as many rows and columns of them."""
    for name, sizes in condition_parts(condition):
        if name == "aligned":
            check(sizes[0] == tokens, "condition", f"{name} values of all {tokens} tokens", condition)
        if name == "aligned-image":
            _, height, width, patch = sizes
            rows, columns = height // patch, width // patch
            if grid is not None:
                expected = f"{name} in {grid[0]}x{grid[1]} patches, as the images are"
                check((rows, columns) == grid, "condition", expected, condition)
            check(rows * columns == tokens, "condition", f"{name} in {tokens} patches, one for each token", condition)
