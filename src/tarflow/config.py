"""The configuration of a run: what is modelled, which data are seen, how the weights move.

Frozen dataclasses that need nothing but the standard library. `from_dict` is strict: an unknown field, a value of the
wrong type and a contradiction are each a `ConfigError` that names the field. Each field's help text is what the
command line and the documentation show.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

Recompute: TypeAlias = Literal["nothing", "elementwise", "layers"]
"""What the backward pass computes again instead of keeping it: norms and GELUs, or all of each Transformer layer."""


class ConfigError(ValueError):
    """A field that does not exist, has the wrong type, or contradicts another one."""


def option(default: Any = dataclasses.MISSING, *, help: str) -> Any:
    """A dataclass field with its help text; without a default it is required."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TarFlowConfig:
    """The architecture of a TarFlow (arXiv 2412.06329): everything that decides the shapes of its weights.

    >>> TarFlowConfig(image_size=8, channels=1, patch_size=2, width=64, layers=(1, 1)).num_patches
    16
    """

    image_size: int | tuple[int, int] = option(help="height and width in pixels, one number for a square")
    patch_size: int = option(help="side of a square patch in pixels; smaller is better and slower")
    width: int = option(help="channels of the Transformers, a multiple of the head dimension")
    layers: tuple[int, ...] = option(help="Transformer layers of each block, one entry a block")
    channels: int = option(3, help="channels of the images: 1 is grey, 3 is RGB")
    num_classes: int = option(0, help="number of classes, 0 for an unconditional model")
    transform: Literal["affine", "additive"] = option(
        "affine", help="affine (shift and scale) or additive (the volume-preserving variant)"
    )
    log_scale_bound: float | None = option(
        None, help="bound a of the log-scale, a*tanh(v/a); unbounded when not given, as in the paper"
    )
    head_dim: int = option(64, help="channels of an attention head")  # 64 throughout the paper
    expansion: int = option(4, help="width of the MLP over the width of the Transformer")

    def __post_init__(self) -> None:
        _coerce_fields(self)
        height, width = self.image_shape
        _check(min(height, width) >= 1, "image_size", "positive numbers", self.image_size)
        for name in ("patch_size", "width", "channels", "head_dim", "expansion"):
            _check(getattr(self, name) >= 1, name, "a positive number", getattr(self, name))
        _check(
            height % self.patch_size == 0 and width % self.patch_size == 0,
            "patch_size",
            f"a divisor of the image size {height}x{width}",
            self.patch_size,
        )
        _check(self.width % self.head_dim == 0, "width", f"a multiple of head_dim {self.head_dim}", self.width)
        _check(
            len(self.layers) >= 1 and min(self.layers) >= 1,
            "layers",
            "at least one block, each of at least one layer",
            self.layers,
        )
        _check(self.num_classes >= 0, "num_classes", "0 or more", self.num_classes)
        bound = self.log_scale_bound
        _check(bound is None or (bound > 0 and math.isfinite(bound)), "log_scale_bound", "a positive number", bound)
        if bound is not None and self.transform == "additive":
            raise ConfigError("log_scale_bound: the additive transform has no log-scale to bound")

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = self.image_shape
        return height // self.patch_size, width // self.patch_size

    @property
    def num_patches(self) -> int:
        """T, the length of the sequence."""
        rows, columns = self.grid
        return rows * columns

    @property
    def patch_dim(self) -> int:
        """D, the numbers in a patch."""
        return self.channels * self.patch_size**2

    @property
    def num_dims(self) -> int:
        """T·D, the numbers in an image."""
        return self.num_patches * self.patch_dim


@dataclass(frozen=True)
class DataConfig:
    """Which images are seen, and how a file becomes a tensor. Stored with the run, so that its user need not know."""

    source: str = option("digits", help="digits, fashion-mnist, or the path of a folder, of Parquet or of IDX files")
    levels: int = option(256, help="number of values a pixel can take")
    class_names: tuple[str, ...] = option((), help="names of the classes, in the order of the labels")
    conditional: bool = option(True, help="learn p(x|y) where the data have labels")
    flip: bool = option(False, help="mirror half of the training images from left to right")
    held_out_fraction: float = option(
        0.1, help="share of the images held out where the data have no split of their own"
    )
    split_seed: int = option(0, help="seed of that split")
    skip_bad: bool = option(False, help="leave out files that cannot be read, instead of stopping")

    def __post_init__(self) -> None:
        _coerce_fields(self)
        _check(2 <= self.levels <= 256, "levels", "2 to 256", self.levels)
        _check(0 < self.held_out_fraction < 1, "held_out_fraction", "between 0 and 1", self.held_out_fraction)


@dataclass(frozen=True)
class TrainingConfig:
    """How the weights move, and what is written down on the way. Defaults are the paper's where it has one."""

    noise: Literal["gaussian", "uniform"] = option(
        "gaussian", help="gaussian: x + noise_std·ε, for samples; uniform: dequantised, for likelihoods"
    )
    noise_std: float = option(0.05, help="σ of the gaussian noise, in units where pixels span -1 to 1")  # ImageNet-64
    steps: int | None = option(None, help="optimizer steps; or give epochs")
    epochs: float | None = option(None, help="passes over the training images; or give steps")
    batch_size: int = option(256, help="images an optimizer step")
    lr: float = option(1e-4, help="highest learning rate")
    final_lr: float = option(1e-6, help="learning rate at the start of the warm-up and at the end of the cosine")
    warmup_steps: int | None = option(None, help="steps of linear warm-up; one epoch when not given, as in the paper")
    betas: tuple[float, float] = option((0.9, 0.95), help="AdamW's decay rates")
    weight_decay: float = option(1e-4, help="AdamW's decay, on matrices only")
    clip_norm: float | None = option(1.0, help="largest norm of the gradient; 0 does not clip")
    ema_decay: float = option(0.9999, help="decay of the averaged weights, warmed up; 0 turns averaging off")
    label_drop: float = option(0.1, help="share of the labels replaced by the null class")
    precision: Literal["auto", "float32", "bf16"] = option(
        "auto", help="auto: bf16 products on a GPU for gaussian noise, else float32"
    )
    accumulate: int = option(
        1, help="micro-batches that a step's gradient is added up from: less memory, the same step up to rounding"
    )
    checkpoint_activations: Recompute = option(  # noqa: RUF009 - an alias hides from ruff that it is a string
        "elementwise",
        help="what the backward pass computes again instead of keeping it: nothing; elementwise (norms and GELUs); "
        "layers (all of each Transformer layer). Less memory for some time, the same gradient to the bit",
    )
    compile: Literal["auto", "on", "off"] = option(
        "auto", help="compile the Transformer layers for training: auto is on for CUDA and off elsewhere"
    )
    seed: int = option(0, help="seed of the weights, the order of the data and the noise")
    log_every: int = option(10, help="steps between two lines of metrics")
    evaluate_every: int = option(1000, help="steps between two held-out evaluations")
    evaluate_images: int = option(1000, help="held-out images an evaluation during training looks at")
    sample_every: int = option(1000, help="steps between two sample sheets; 0 draws none")
    save_every: int = option(1000, help="steps between two checkpoints")
    keep_last: int = option(2, help="checkpoints kept beside the best one")

    def __post_init__(self) -> None:
        _coerce_fields(self)
        if self.clip_norm == 0:
            object.__setattr__(self, "clip_norm", None)  # TOML and the command line have no null
        positive = [
            "batch_size",
            "accumulate",
            "lr",
            "log_every",
            "evaluate_every",
            "evaluate_images",
            "save_every",
            "keep_last",
        ]
        positive += ["noise_std"] if self.noise == "gaussian" else []
        for name in positive:
            _check(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        for name in ("noise_std", "final_lr", "weight_decay", "sample_every"):
            _check(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        _check(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            f"a divisor of batch_size {self.batch_size}",
            self.accumulate,
        )
        for name in ("label_drop", "ema_decay"):
            _check(0 <= getattr(self, name) < 1, name, "at least 0 and less than 1", getattr(self, name))
        for name in ("steps", "epochs", "clip_norm"):
            value = getattr(self, name)
            _check(value is None or value > 0, name, "a positive number", value)
        _check(self.warmup_steps is None or self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        _check(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", "two numbers in [0, 1)", self.betas
        )
        _check(self.final_lr <= self.lr, "final_lr", f"no more than lr {self.lr}", self.final_lr)
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(
                f"steps and epochs: expected one of them, got steps={self.steps} and epochs={self.epochs}"
            )


@dataclass(frozen=True)
class RunConfig:
    """The three sections of a run's `config.json`. The last two are missing where only a model was saved."""

    model: TarFlowConfig
    data: DataConfig | None = None
    training: TrainingConfig | None = None

    def __post_init__(self) -> None:
        _coerce_fields(self)


def to_dict(config: Any) -> dict[str, Any]:
    """A config as a dictionary that JSON can hold."""
    return dataclasses.asdict(config)


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass `cls` from `values`, strictly.

    Raises `ConfigError` naming the field: unknown (with the nearest known name), missing, of the wrong type, or refused
    by the dataclass itself. `where` stands before the field's name in the message, such as `"recipe.toml: training"`.
    """
    check_fields(cls, values, where)
    prefix = f"{where}." if where else ""
    for entry in dataclasses.fields(cls):  # type: ignore[arg-type]
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and entry.name not in values:
            raise ConfigError(f"{prefix}{entry.name}: missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from None


def check_fields(cls: type, values: Mapping[str, Any], where: str = "") -> None:
    """Raise ConfigError naming the first of `values` that is no field of the dataclass `cls`."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a table of fields, got {values!r}")
    known = [entry.name for entry in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; perhaps {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"{where}{'.' if where else ''}{name}: no such field{hint}")


def check_value(cls: type, name: str, value: Any, where: str = "") -> Any:
    """`value` as the field `name` of the dataclass `cls` holds it; ConfigError where it has another type."""
    return _coerce(value, typing.get_type_hints(cls)[name], f"{where}{'.' if where else ''}{name}")


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type `hint`: a whole float is an int, an int is a float, a list (JSON's) is a tuple."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for choice in args:
            try:
                return _coerce(value, choice, where)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple) and (args[-1] is Ellipsis or len(value) == len(args)):
            inner = [args[0]] * len(value) if args[-1] is Ellipsis else args
            return tuple(_coerce(v, h, f"{where}[{i}]") for i, (v, h) in enumerate(zip(value, inner, strict=True)))
    elif dataclasses.is_dataclass(hint):
        if dataclasses.is_dataclass(value) and isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    elif hint is types.NoneType:
        if value is None:
            return None
    elif isinstance(value, bool):
        if hint is bool:
            return value
    elif hint is int and isinstance(value, int | float) and value == value // 1:
        return int(value)
    elif hint is float and isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    elif hint is str and isinstance(value, str):
        return value
    raise ConfigError(f"{where}: expected {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    """A type in the words of a message to a user."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(a) for a in args if a is not types.NoneType)
    if origin is Literal:
        return " or ".join(repr(a) for a in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list, each {_describe(args[0])}"
        return f"{len(args)} values, each {_describe(args[0])}"
    names = {
        int: "a whole number",
        float: "a number",
        str: "a string",
        bool: "true or false",
        types.NoneType: "nothing",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _coerce_fields(config: Any) -> None:
    """Check every field of a frozen config against its annotation, however it was built."""
    hints = typing.get_type_hints(type(config))
    for entry in dataclasses.fields(config):
        value = _coerce(getattr(config, entry.name), hints[entry.name], entry.name)
        object.__setattr__(config, entry.name, value)


def _check(holds: bool, name: str, expected: str, got: Any) -> None:
    if not holds:
        raise ConfigError(f"{name}: expected {expected}, got {got!r}")
