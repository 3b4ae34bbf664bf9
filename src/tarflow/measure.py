"""What a model sees of pixels: levels as numbers from -1 to 1 with noise, pixels back from them, and bits of a density.

A pixel is a level k in 0 … L-1, held as uint8. `Measure` says how the model sees it, one of `NOISES`:

    uniform     x = 2(k+u)/L - 1,        u ~ U[0, 1)     for likelihoods: the density of x bounds the probability of k
    gaussian    x = 2k/(L-1) - 1 + σε,   ε ~ N(0, 1)     for samples: a density of noisy images, both ends exact

To add a noise: a class like `Uniform` or `Gaussian`, and its line in `NOISES`. Nothing else has to know it: training,
scores, samples, reports and the command line ask the measure.

torch is imported where tensors are made, because a config names its noise and should not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from tarflow.fields import integer, real

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_LEVELS = 256  # a level is one byte
INDEX_CHUNK = 1 << 24  # pixels requantised at once: an index takes 4 bytes each

Number = TypeVar("Number", float, "Tensor")


class Gaussian:
    """x = 2k/(L-1) - 1 + σε: level 0 is -1 and level L-1 is 1, exactly, before the noise.

    Attributes:
        figure: what bits a dimension in this measure are called where they are written.
        bounds_pixels: whether they bound the bits of the pixels from above.
        has_std: whether it has a σ. tweedie: whether one step of Tweedie's formula with that σ removes it.
    """

    figure = "noisy_bits_per_dim"
    bounds_pixels = False
    has_std = True
    tweedie = True

    def levels_per_unit(self, levels: int) -> float:
        """How many neighbouring levels lie in one unit of x; bits/dim are in a measure in which they are 1 apart."""
        return (levels - 1) / 2

    def clean(self, pixels: Tensor, levels: int) -> Tensor:
        """The middle of what each level becomes, float32."""
        return pixels.float() * 2 / (levels - 1) - 1

    def noisy(self, pixels: Tensor, levels: int, std: float, drawn: Tensor) -> Tensor:
        """x, float32, from noise that `draw` made."""
        return self.clean(pixels, levels) + std * drawn

    def nearest(self, x: Tensor, levels: int) -> Tensor:
        """The level that x belongs to, a whole number, and beyond 0 … L-1 where x is no pixel."""
        return ((x + 1) * (levels - 1) / 2).round()

    def moments(self, levels: int, std: float) -> tuple[float, float, float]:
        """a, b, v: the x of a level k has the mean a·k + b, which is `clean`, and the variance v."""
        return 2 / (levels - 1), -1.0, std**2

    def describe(self, std: float) -> str:
        return f"density of x + {std:g}·ε"

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Standard noise, float32, on the generator's device."""
        import torch

        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


class Uniform:
    """x = 2(k+u)/L - 1: each level has an interval of its own. Attributes and methods as those of `Gaussian`."""

    figure = "bits_per_dim"
    bounds_pixels = True
    has_std = False
    tweedie = False

    def levels_per_unit(self, levels: int) -> float:
        return levels / 2

    def clean(self, pixels: Tensor, levels: int) -> Tensor:
        return (pixels.float() + 0.5) * 2 / levels - 1

    def noisy(self, pixels: Tensor, levels: int, std: float, drawn: Tensor) -> Tensor:
        return (pixels + drawn) * 2 / levels - 1

    def nearest(self, x: Tensor, levels: int) -> Tensor:
        return ((x + 1) * levels / 2).floor()

    def moments(self, levels: int, std: float) -> tuple[float, float, float]:
        return 2 / levels, 1 / levels - 1, (2 / levels) ** 2 / 12

    def describe(self, std: float) -> str:
        return "bits/dim of the data (uniform dequantisation)"

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        import torch

        return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)


NOISES: dict[str, Gaussian | Uniform] = {"gaussian": Gaussian(), "uniform": Uniform()}


@dataclass(frozen=True)
class Measure:
    """How a model sees pixels, and so what its densities are densities of.

    Attributes:
        levels: L, 2 to 256, values that a pixel can take.
        noise: a key of `NOISES`. noise_std: its σ > 0, in units where pixels span -1 to 1; 0 for a noise without one.

    Raises:
        ValueError: another number of levels, an unknown noise, or no positive σ for a noise that has one.

    >>> import torch
    >>> measure = Measure(levels=17, noise="gaussian", noise_std=0.1)
    >>> measure.clean(torch.tensor([0, 8, 16], dtype=torch.uint8))
    tensor([-1.,  0.,  1.])
    >>> Measure(levels=256).pixels(torch.tensor([-3.0, 0.0, 1.0]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """

    levels: int = MAX_LEVELS
    noise: str = "uniform"
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", check_levels(self.levels))
        if self.noise not in NOISES:
            raise ValueError(f"noise: expected {' or '.join(map(repr, NOISES))}, got {self.noise!r}")
        std = 0.0
        if self.kind.has_std:
            std = real("noise_std", self.noise_std, "a positive number", lambda value: value > 0)
        object.__setattr__(self, "noise_std", std)

    def __str__(self) -> str:
        """What a number in this measure is a number of."""
        return self.kind.describe(self.noise_std)

    @property
    def kind(self) -> Gaussian | Uniform:
        """The noise itself."""
        return NOISES[self.noise]

    @property
    def figure(self) -> str:
        """What bits a dimension in this measure are called: `bits_per_dim`, or `noisy_bits_per_dim`, which bound no
        bits of pixels."""
        return self.kind.figure

    @property
    def sigma(self) -> float | None:
        """The σ that denoising removes; None where there is nothing to denoise."""
        return self.noise_std if self.kind.tweedie else None

    def clean(self, pixels: Tensor) -> Tensor:
        """Levels of any shape without noise, the middle of what each becomes; float32."""
        return self.kind.clean(pixels, self.levels)

    def noisy(
        self,
        pixels: Tensor,
        generator: torch.Generator | Sequence[torch.Generator],
        rows: slice | None = None,
        total: int | None = None,
    ) -> Tensor:
        """What a model sees of `pixels`, with noise drawn afresh: (B, C, H, W) float32, on the device of the pixels.

        Args:
            pixels: (B, C, H, W) uint8.
            generator: one for the batch, or a sequence of one an image, with which the noise of an image does not
                depend on the batch that it is in. It may live on another device than the pixels.
            rows, total: with one generator, the pixels are these rows of a batch of `total` images, and get the noise
                that they would get there. By default they are all of it.

        Raises:
            ValueError: pixels that are not uint8, or the number of generators. That no pixel reaches L is not checked:
                it would wait for the device in every step.

        >>> import torch
        >>> pixels = torch.zeros(2, 1, 1, 1, dtype=torch.uint8)
        >>> x = Measure(levels=4).noisy(pixels, torch.Generator().manual_seed(0))
        >>> bool(((x >= -1) & (x < -0.5)).all())
        True
        """
        import torch

        if pixels.dtype != torch.uint8:
            raise ValueError(f"pixels: expected uint8, got {pixels.dtype}")
        if isinstance(generator, torch.Generator):
            drawn = self.kind.draw((total or len(pixels), *pixels.shape[1:]), generator)
            drawn = drawn if rows is None else drawn[rows]
            if len(drawn) != len(pixels):
                raise ValueError(f"rows: expected {len(pixels)}, one an image, got {len(drawn)} of {total}")
        elif len(generator) != len(pixels):
            raise ValueError(f"generator: expected one, or {len(pixels)}, one an image, got {len(generator)}")
        elif not generator:
            return self.clean(pixels)
        else:
            drawn = torch.stack([self.kind.draw(pixels.shape[1:], each) for each in generator])
        return self.kind.noisy(pixels, self.levels, self.noise_std, drawn.to(pixels.device))

    def pixels(self, x: Tensor) -> Tensor:
        """The levels nearest to what the model sees or draws, clipped to 0 … L-1, uint8.

        Raises:
            ValueError: numbers that are not finite.
        """
        import torch

        bad = int((~x.isfinite()).sum())
        if bad:
            raise ValueError(f"x: expected finite numbers, got {bad} of {x.numel()} that are not")
        return self._nearest(x).clamp(0, self.levels - 1).to(torch.uint8)

    def clipped(self, x: Tensor) -> Tensor:
        """Which numbers of `x` lie beyond what a pixel can be, so that `pixels` clips them: bool, of the shape of x."""
        k = self._nearest(x)
        return (k < 0) | (k > self.levels - 1)

    def bits_per_dim(self, log_prob: Number, dims: int) -> Number:
        """-log p / (dims · ln 2) + log2 of the levels per unit of x; neighbouring levels are 1 apart in this measure.

        Args:
            log_prob: log p in nats, of x as the model sees it, with every constant of p; a number or a tensor.
            dims: T·D, the numbers in an image.

        >>> Measure(levels=256).bits_per_dim(math.log(0.5), 1)  # flat on -1 … 1
        8.0
        """
        return -log_prob / dims / math.log(2) + math.log2(self.kind.levels_per_unit(self.levels))

    def _nearest(self, x: Tensor) -> Tensor:
        import torch

        return self.kind.nearest(x.to(torch.promote_types(x.dtype, torch.float32)), self.levels)


def check_levels(levels: int) -> int:
    """`levels`, or a ValueError where a pixel of one byte cannot have so many values."""
    if not 2 <= (number := integer("levels", levels)) <= MAX_LEVELS:
        raise ValueError(f"levels: expected 2 to {MAX_LEVELS}, got {levels}")
    return number


def requantize(pixels: Tensor, levels: int, new_levels: int) -> Tensor:
    """`k' = round(k (L'-1)/(L-1))`: the same picture with another number of levels, uint8 to uint8, a half goes up."""
    import torch

    check_levels(levels)
    check_levels(new_levels)
    if levels == new_levels:
        return pixels.clone()
    k = torch.arange(levels, device=pixels.device, dtype=torch.int64)
    table = ((2 * k * (new_levels - 1) + levels - 1) // (2 * (levels - 1))).to(torch.uint8)  # in whole numbers
    parts = [table[part.int()] for part in pixels.reshape(-1).split(INDEX_CHUNK)]
    return torch.cat(parts).reshape(pixels.shape) if parts else pixels.clone()


def to_8bit(pixels: Tensor, levels: int) -> Tensor:
    """`round(255 k/(L-1))` as uint8, to show or to write.

    >>> import torch
    >>> to_8bit(torch.tensor([0, 8, 16], dtype=torch.uint8), levels=17)
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return requantize(pixels, levels, MAX_LEVELS)
