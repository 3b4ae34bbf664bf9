"""How samples are drawn from a model, as one value: guidance and denoising; and the choice that is kept beside it."""

from __future__ import annotations

from dataclasses import dataclass

from tarflow.fields import check, coerce_fields
from tarflow.sampling.guidance import Guidance

UNGUIDED = Guidance(0.0)


@dataclass(frozen=True)
class Setting:
    """Guidance and denoising of a sampler, as `sample` takes them.

    Attributes:
        guidance: of scale 0 for none. denoise: σ of the denoising; None does not denoise.

    >>> print(Setting(Guidance(1.0), denoise=0.1))
    guidance 1 (linear, paper), denoised with σ=0.1
    >>> print(Setting())
    no guidance, not denoised
    """

    guidance: Guidance = UNGUIDED
    denoise: float | None = None

    def __post_init__(self) -> None:
        coerce_fields(self)
        check(self.denoise is None or self.denoise > 0, "denoise", "a positive number or nothing", self.denoise)

    def __str__(self) -> str:
        return f"{self.guidance}, {'not denoised' if self.denoise is None else f'denoised with σ={self.denoise:g}'}"


@dataclass(frozen=True)
class StoredSetting:
    """A setting that was found best for a model, with where it comes from: what `sampling.json` holds.

    Attributes:
        weights: a digest of the weights that it was found for.
        setting: the choice.
        figure: what it was the best by, such as "FD-EffNetLite0". value: that figure.
        samples: how many each setting was judged by. compared: how many settings there were.
    """

    weights: str
    setting: Setting
    figure: str
    value: float
    samples: int
    compared: int

    def __post_init__(self) -> None:
        coerce_fields(self)

    def __str__(self) -> str:
        best = f"the best of {self.compared}" if self.compared > 1 else "the only one tried"
        return f"{self.setting}: {best} by {self.figure} ({self.value:.4g}, {self.samples} samples)"
