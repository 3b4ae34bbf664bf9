"""What sections of a report say of a run, taken apart; and pixels as the model of a run sees them."""

from __future__ import annotations

from torch import Tensor

from tarflow.measure import Measure
from tarflow.report.parts import Figure, Parts, Strip
from tarflow.report.subject import Settings, Subject

SETTINGS = Settings(images=4, limit=40, seed=5)


def strips_of(parts: Parts, number: int = 0) -> dict[str, Strip]:
    figure = [part for part in parts if isinstance(part, Figure)][number]
    return {strip.label: strip for strip in figure.strips}


def caption_of(parts: Parts, number: int = 0) -> str:
    return [part for part in parts if isinstance(part, Figure)][number].caption


def seen_as(subject: Subject, pixels: Tensor) -> Tensor:
    """Pixels as values of the model's, which `subject.pixels` takes back to these pixels."""
    if subject.training.noise == "uniform":
        return Measure(subject.run.levels).clean(pixels)
    return Measure(subject.run.levels, "gaussian", 1.0).clean(pixels)
