"""The configuration of a run: what is modelled, which data are seen, how the weights move.

Frozen dataclasses that wait for no library; `fields` checks them. The command line shows their help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, TypeAlias

from tarflow.architecture import (
    LARGEST,
    bound_of,
    check_aligned,
    check_network,
    check_transform,
    check_transforms,
    condition_parts,
    transform_entry,
)
from tarflow.config.data import Aspect as Aspect
from tarflow.config.data import DataConfig as DataConfig
from tarflow.config.data import PadWith as PadWith
from tarflow.config.data import ValueRange as ValueRange
from tarflow.config.words import NULL as NULL
from tarflow.config.words import finite_number as finite_number
from tarflow.config.words import names_in as names_in
from tarflow.config.words import values_in as values_in
from tarflow.fields import ConfigError as ConfigError
from tarflow.fields import check, coerce_fields, derived, option
from tarflow.fields import check_value as check_value
from tarflow.fields import from_dict as from_dict
from tarflow.fields import to_dict as to_dict
from tarflow.measure import MAX_LEVELS, NOISES, Measure

Logger: TypeAlias = Literal["csv", "tensorboard", "wandb"]
Recompute: TypeAlias = Literal["nothing", "elementwise", "layers"]
"""What the backward pass computes again instead of keeping it: norms and GELUs, or all of each Transformer layer."""


@dataclass(frozen=True)
class TarFlowConfig:
    """The architecture of a TarFlow (arXiv 2412.06329): everything that decides the shapes of its weights.

    >>> TarFlowConfig(image_size=8, channels=1, patch_size=2, width=64, layers=(1, 1)).num_patches
    16
    """

    image_size: int | tuple[int, int] = option(
        help="height and width in pixels, one number for a square; that of the data, or a recipe's, when not given"
    )
    patch_size: int = option(help="side of a square patch in pixels; smaller is better and slower")
    width: int = option(help="channels of the Transformers, a multiple of the head dimension")
    layers: tuple[int, ...] = option(help="Transformer layers of each block, one entry a block")
    channels: int = option(3, help="channels of the images: 1 is grey, 3 is RGB; those of the data when not given")
    num_classes: int = derived(0, help="number of classes, 0 for an unconditional model")
    condition: str = derived("auto", help="as of a SequenceConfig; auto: the classes, where there are any")
    transform: str = option(
        "affine",
        help="affine (shift and scale), additive (the volume-preserving variant) or spline (bends each number before "
        "it is shifted); with -mixed behind it, the numbers of a patch are mixed by a triangular matrix before; with "
        "-by-number, they see those before them through a small network, and samples take longer",
    )
    transforms: tuple[str, ...] = option(
        (), help="transforms of the first blocks, that next to the pixels first; the others have `transform`"
    )
    bins: int = option(8, help="bins of a spline")
    interval: float = option(1.0, help="a spline bends numbers from -interval to interval; pixels lie within 1")
    order: Literal["alternating", "causal"] = option(
        "alternating",
        help="alternating: the blocks walk the patches forwards and backwards in turn, the paper's; causal: all "
        "forwards, so that p(later patches | earlier ones) is exact, at a worse likelihood",
    )
    start_token: bool = option(False, help="predict the first patch too, from a learned start token; not the paper's")
    log_scale_bound: float | Literal["auto", "none"] | None = option(  # None is "none", which TOML has no word for
        "auto",
        help="bound a of the log-scale, a*tanh(v/a); auto: 4 where there is a log-scale; none: unbounded, the paper's, "
        "which gives densities of 0 far from the data",
    )
    rotary: bool = option(
        False,
        help="rotary positions (row and column of a patch) in attention, beside the learned ones; not the paper's",
    )
    head_dim: int = option(64, help="channels of an attention head")  # 64 throughout the paper
    expansion: int = option(4, help="width of the MLP over the width of the Transformer")

    def __post_init__(self) -> None:
        coerce_fields(self)
        height, width = self.image_shape
        check(min(height, width) >= 1, "image_size", "positive numbers", self.image_size)
        check(max(height, width) <= LARGEST, "image_size", f"at most {LARGEST}", self.image_size)
        for name in ("patch_size", "channels"):
            check(1 <= getattr(self, name) <= LARGEST, name, f"1 to {LARGEST}", getattr(self, name))
        divides = height % self.patch_size == 0 and width % self.patch_size == 0
        check(divides, "patch_size", f"a divisor of the image size {height}x{width}", self.patch_size)
        check_network(self)
        check_transform("transform", self.transform)
        check_transforms(self)
        blocks = len(self.layers)
        check(len(self.transforms) <= blocks, "transforms", f"at most one for each of {blocks} blocks", self.transforms)
        turns = not self.rotary or self.head_dim % 4 == 0
        check(turns, "head_dim", "a multiple of 4 with rotary positions", self.head_dim)
        check(0 <= self.num_classes <= LARGEST, "num_classes", f"0 to {LARGEST}", self.num_classes)
        if self.condition != "auto":
            parts = condition_parts(self.condition)
            check_aligned(self.condition, self.num_patches, self.grid)
            classes = parts[0][1][0] if len(parts) == 1 and parts[0][0] == "classes" else 0
            object.__setattr__(self, "num_classes", self.num_classes or classes)
            expected = f"{classes}, as condition {self.condition} says"
            check(self.num_classes == classes, "num_classes", expected, self.num_classes)
        check(
            self.start_token or self.num_patches >= 2,
            "patch_size",
            "two patches at least (the first is not transformed without start_token, and one alone would be N(0, 1))",
            self.patch_size,
        )
        scales = any(transform_entry(name).scales for name in self.block_transforms)
        object.__setattr__(self, "log_scale_bound", bound_of(self.log_scale_bound, scales))

    @property
    def bound(self) -> float | None:
        """The bound a of the log-scale, None where there is none: `log_scale_bound`, whose words are numbers by now."""
        assert not isinstance(self.log_scale_bound, str)
        return self.log_scale_bound

    @property
    def conditioned_on(self) -> str:
        """What the density is conditioned on, as of a SequenceConfig: `condition`, whose "auto" is the classes."""
        if self.condition != "auto":
            return self.condition
        return f"classes:{self.num_classes}" if self.num_classes else "none"

    @property
    def block_transforms(self) -> tuple[str, ...]:
        """The transform of each block: `transforms`, and `transform` for the rest."""
        return (*self.transforms, *(self.transform,) * (len(self.layers) - len(self.transforms)))

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
class TrainingConfig:
    """How the weights move, and what is written down on the way. Defaults are the paper's where it has one."""

    noise: str = option(
        "gaussian", help="gaussian: x + noise_std·ε, for samples; uniform: dequantised, for likelihoods"
    )
    noise_std: float = option(0.05, help="σ of the gaussian noise, in units where pixels span -1 to 1")  # ImageNet-64
    steps: int | None = option(None, help="optimizer steps; or give epochs")
    epochs: float | None = option(
        None, help="passes over the training images, of which the last batch is filled up; or give steps"
    )
    batch_size: int = option(256, help="images an optimizer step, over all devices")
    optimizer: Literal["adamw", "muon"] = option(
        "adamw", help="adamw, the paper's; muon: Muon for the matrices inside the Transformers, AdamW for the rest"
    )
    lr: float = option(1e-4, help="highest learning rate")
    muon_lr: float | None = option(
        None, help="that of the matrices that Muon turns, on the same schedule; lr when not given"
    )
    final_lr: float = option(1e-6, help="learning rate at the start of the warm-up and at the end of the schedule")
    schedule: Literal["cosine", "linear", "trapezoid"] = option(
        "cosine", help="how the learning rate falls after the warm-up; trapezoid: not at all, then a line at the end"
    )
    warmup_steps: int | None = option(None, help="steps of linear warm-up; one epoch when not given, as in the paper")
    betas: tuple[float, float] = option((0.9, 0.95), help="AdamW's decay rates")
    weight_decay: float = option(1e-4, help="AdamW's decay, on matrices only")
    clip_norm: float | None = option(1.0, help="largest norm of the gradient; 0 does not clip")
    ema_decay: float = option(0.9999, help="decay of the averaged weights, warmed up; 0 turns averaging off")
    label_drop: float = option(0.1, help="share of the labels replaced by the null class")
    precision: Literal["auto", "float32", "tf32", "bf16"] = option(
        "auto", help="of the products; auto on CUDA: bf16 for gaussian noise, tf32 for uniform; elsewhere float32"
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
    strategy: Literal["auto", "ddp", "fsdp"] = option(
        "auto",
        help="how several processes (torchrun) share the work; one needs none. ddp: each holds all weights; fsdp: each "
        "holds a part of them, of their moments and of their average; auto is ddp",
    )
    seed: int = option(0, help="seed of the weights, the order of the data and the noise")
    log_every: int = option(10, help="steps between two lines of metrics")
    evaluate_every: int = option(1000, help="steps between two held-out evaluations")
    evaluate_images: int = option(1000, help="held-out images an evaluation during training looks at")
    sample_every: int = option(1000, help="steps between two sample sheets; 0 draws none")
    save_every: int = option(1000, help="steps between two checkpoints")
    keep_last: int = option(2, help="checkpoints kept beside the best one")
    log: tuple[Logger, ...] = derived((), help="who else hears of metrics and sheets, see `training.logs`")
    # Drawn when the run begins. Two runs of one config have equal ones.
    run: str | None = derived(None, compare=False, help="the run that a checkpoint belongs to")
    init_from: str = derived("", help="the weights that the run started from, and their digest; none where it is empty")

    def __post_init__(self) -> None:
        coerce_fields(self)
        if self.clip_norm == 0:
            object.__setattr__(self, "clip_norm", None)  # TOML and the command line have no null
        positive = ("batch_size", "accumulate", "lr", "log_every", "evaluate_every", "evaluate_images", "save_every")
        check(self.noise in NOISES, "noise", " or ".join(map(repr, NOISES)), self.noise)
        for name in (*positive, "keep_last", *(("noise_std",) if NOISES[self.noise].has_std else ())):
            check(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        for name in ("noise_std", "final_lr", "weight_decay", "sample_every"):
            check(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        divides = self.batch_size % self.accumulate == 0
        check(divides, "accumulate", f"a divisor of batch_size {self.batch_size}", self.accumulate)
        for name in ("label_drop", "ema_decay"):
            check(0 <= getattr(self, name) < 1, name, "at least 0 and less than 1", getattr(self, name))
        for name in ("steps", "epochs", "clip_norm", "muon_lr"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, name, "a positive number", value)
        check(self.warmup_steps is None or self.warmup_steps >= 0, "warmup_steps", "0 or more", self.warmup_steps)
        check(all(0 <= beta < 1 for beta in self.betas), "betas", "two numbers in [0, 1)", self.betas)
        check(-(1 << 63) <= self.seed < 1 << 64, "seed", "a number of 64 bits", self.seed)  # torch's own generator's
        if self.muon_lr is not None and self.optimizer != "muon":
            raise ConfigError(f"muon_lr: optimizer {self.optimizer} has no such learning rate; expected none, or muon")
        if self.optimizer == "muon" and self.strategy == "fsdp":
            raise ConfigError("optimizer: muon needs whole matrices, which strategy fsdp divides; use ddp, or adamw")
        check(self.final_lr <= self.lr, "final_lr", f"no more than lr {self.lr}", self.final_lr)
        got = f"steps={self.steps} and epochs={self.epochs}"
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"steps and epochs: expected one of them, got {got}")

    def measure(self, levels: int) -> Measure:
        """How the model sees pixels of that many levels."""
        return Measure(levels, self.noise, self.noise_std)

    def steps_of(self, epochs: float, num_images: int) -> int:
        """The steps in which all of `num_images` images are seen `epochs` times: ceil(epochs · images / batch_size).

        Batches go on from one epoch into the next, so that only the last one of all is filled up.

        >>> TrainingConfig(batch_size=64).steps_of(10, 18)
        3
        """
        return math.ceil(Fraction(repr(epochs)) * num_images / self.batch_size)

    def step_counts(self, num_images: int) -> tuple[int, int]:
        """(steps in all, steps of warm-up) on `num_images` images, by `steps` or `epochs`, one of which is given."""
        steps = self.steps
        if steps is None:
            assert self.epochs is not None
            steps = self.steps_of(self.epochs, num_images)
        warmup = self.steps_of(1, num_images) if self.warmup_steps is None else self.warmup_steps
        return steps, min(warmup, steps)


@dataclass(frozen=True)
class RunConfig:
    """The three sections of a run's `config.json`. The last two are missing where only a model was saved."""

    model: TarFlowConfig
    data: DataConfig | None = None
    training: TrainingConfig | None = None

    def __post_init__(self) -> None:
        coerce_fields(self)

    @property
    def measure(self) -> Measure:
        """How the model sees pixels; 256 levels with uniform noise where nothing is stored."""
        levels = self.data.levels if self.data else MAX_LEVELS
        return self.training.measure(levels) if self.training else Measure(levels)
