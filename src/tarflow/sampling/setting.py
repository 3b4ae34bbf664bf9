"""How samples are drawn from a model, as one value: guidance and denoising; and the choice that is kept beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tarflow.fields import check, coerce_fields, option
from tarflow.sampling.guidance import Guidance


@dataclass(frozen=True)
class Setting:
    """Guidance and denoising of a sampler.

    >>> print(Setting(scale=1.0, denoise=0.1))
    guidance 1 (linear, paper), denoised with σ=0.1
    >>> print(Setting())
    no guidance, not denoised
    """

    scale: float = option(0.0, help="scale w of the guidance; 0 is none, and then the next three say nothing")
    schedule: Literal["linear", "constant"] = option("linear", help="how it grows along the patches")
    temperature: float = option(1.0, help="attention temperature of the unguided branch")
    rule: Literal["paper", "stable"] = option("paper", help="how the branches are combined")
    denoise: float | None = option(None, help="σ of the denoising; none when not given")

    def __post_init__(self) -> None:
        coerce_fields(self)
        check(self.denoise is None or self.denoise > 0, "denoise", "a positive number or nothing", self.denoise)
        Guidance(self.scale, self.schedule, self.temperature, self.rule)  # says what is wrong with the others

    @property
    def guidance(self) -> Guidance | None:
        """What `sample` takes; None without guidance."""
        if self.scale == 0:
            return None
        return Guidance(self.scale, self.schedule, self.temperature, self.rule)

    def __str__(self) -> str:
        guided = "no guidance"
        if self.scale:
            warm = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
            guided = f"guidance {self.scale:g} ({self.schedule}, {self.rule}{warm})"
        return f"{guided}, {'not denoised' if self.denoise is None else f'denoised with σ={self.denoise:g}'}"


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
