"""A look inside of a flow: what it is, what each block does to samples on their way to noise, and how it is decoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.kept import open_calibration
from tarflow.play.streaming import streamed
from tarflow.play.studio import Studio
from tarflow.report.facts import KINDS, parameters_of
from tarflow.report.samples import SHOWN
from tarflow.report.words import plural
from tarflow.sampling.auto import Auto, Choice, calibration_key
from tarflow.sampling.sample import sample

IMAGES = 16  # samples that are looked at


@dataclass(frozen=True)
class BlockWork:
    """What one block does to samples on their way from image to noise.

    Attributes:
        number, transform, order, layers, parameters: what it is.
        bits: what its log-determinant adds to the log-likelihood, bits a dimension, the mean over samples.
        spread: the standard deviation of the numbers that it leaves.
        image: one of the samples as it leaves it, (C, H, W) uint8, black and white being -1 and 1 or beyond.
        solver: what decodes it, and why.
    """

    number: int
    transform: str
    order: str
    layers: int
    parameters: int
    bits: float
    spread: float
    image: Tensor
    solver: str
    why: str


@dataclass(frozen=True)
class Inside:
    """What a flow is, in words by name; the sample that is followed, (C, H, W) uint8; and its blocks."""

    facts: dict[str, str]
    image: Tensor
    blocks: list[BlockWork]

    @property
    def why(self) -> str:
        """Why they are decoded as they are, where that is the same of all; else each says it."""
        reasons = {block.why for block in self.blocks}
        return reasons.pop() if len(reasons) == 1 else ""


def look(studio: Studio) -> Iterator[Inside]:
    """Look inside: draws `IMAGES` samples, which measures the solvers where that pays, and encodes them again."""

    def work(tell: Callable[[Inside], None]) -> None:
        with studio.turn:
            tell(_look(studio))

    return streamed(work)


def _look(studio: Studio) -> Inside:
    flow, y = studio.flow, studio.usual_labels(IMAGES)
    calibration = open_calibration(studio.run)
    x = sample(flow, IMAGES, y, seed=0, solver=Auto(calibration))
    choices = calibration.choices.get(calibration_key(flow, IMAGES, None, None), ())
    blocks, state, dims = [], flow.event.to_tokens(flow.as_state(x))[0], flow.config.num_dims
    labels = flow.check_condition(y, IMAGES)
    with torch.no_grad():
        for number, block in enumerate(flow.blocks):
            state, ladj = block.encode(state, labels)
            choice = choices[len(flow.blocks) - 1 - number] if choices else Choice("sequential")
            blocks.append(
                BlockWork(
                    number=number,
                    transform=flow.config.block_transforms[number],
                    order="last patch to first" if block.order.is_flipped else "first patch to last",
                    layers=len(block.layers),
                    parameters=sum(parameter.numel() for parameter in block.parameters()),
                    bits=float(ladj.double().flatten(1).sum(dim=1).mean()) / dims / math.log(2),
                    spread=float(state.double().std()),
                    image=SHOWN.pixels(flow.event.from_tokens(state[:1]).cpu())[0],
                    solver="one patch a step" if choice.window is None else f"{choice.window} patches at a time",
                    why=why(choice),
                )
            )
    return Inside(facts(studio), studio.shown(x[:1])[0], blocks)


def why(choice: Choice) -> str:
    """Why a block is decoded as it is.

    >>> why(Choice("jacobi", 16, 0.010, 0.025))
    '10.0 ms when it was measured, one patch a step 25.0 ms'
    """
    if not choice.seconds:
        return "not measured: that would have cost more than it could gain on so few patches"
    taken, stepwise = 1000 * choice.seconds, 1000 * choice.sequential_seconds
    if choice.window is None:
        return f"{taken:.1f} ms when it was measured; many patches at a time were slower"
    return f"{taken:.1f} ms when it was measured, one patch a step {stepwise:.1f} ms"


def facts(studio: Studio) -> dict[str, str]:
    """What the model is, without a place on this machine."""
    run, model = studio.run, studio.run.config.model
    height, width = model.image_shape
    kinds = " and ".join(dict.fromkeys(model.block_transforms))
    found = {
        "Images": f"{KINDS[model.channels]}, {height}×{width} pixels of {run.levels} levels",
        "Patches": f"{model.num_patches} of {model.patch_size}×{model.patch_size} pixels",
        "Blocks": f"{plural(len(model.layers), 'block')} ({kinds}), width {model.width}",
        "Parameters": f"{parameters_of(run.flow):,}",
    }
    if studio.fields:
        found["Conditioned on"] = " and ".join(field.name for field in studio.fields)
    else:
        found["Classes"] = plural(len(studio.classes), "class") if studio.classes else "none"
    if run.config.training is not None:
        found["Likelihoods in"] = str(run.measure)
    return found
