"""The sections that show samples: of each class, guided, denoised, on their way, beside their nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from tarflow.evaluation.quality.psnr import psnr
from tarflow.evaluation.quality.ratios import nearest, novelty
from tarflow.evaluation.quality.sweep import grid
from tarflow.measure import Measure, to_8bit
from tarflow.report.parts import Figure, Parts, Strip
from tarflow.report.subject import CLASSES, Subject, Unavailable
from tarflow.run_data import numbers_of
from tarflow.sampling.denoise import denoise
from tarflow.sampling.editing import trace
from tarflow.sampling.sample import SamplingError
from tarflow.seeding import seeded_generator

SHOWN = Measure(256, "gaussian", 1.0)  # of what is not on the levels of the data: -1 is black, 1 is white
TRACED = 3  # samples that are followed through the blocks


def samples(subject: Subject) -> Parts:
    """Rows of samples, one a class."""
    shown, n = subject.shown(subject.samples), subject.settings.images
    strips = []
    for row, images in enumerate(shown.split(n)):
        if subject.labels is None:
            strips.append(Strip(f"row {row + 1}", images, f"{len(images)} samples of the model, row {row + 1}."))
        else:
            name = subject.run.class_names[row]
            strips.append(Strip(name, images, f"{len(images)} samples of class {name}."))
    caption = f"{len(shown)} samples, {subject.setting}, seed {subject.settings.seed}, none picked out."
    if subject.stored_setting is not None:
        caption += f" That is the run's default: {subject.stored_setting}."
    beyond = subject.run.measure.clipped(subject.samples).flatten(1)
    caption += (
        f" {100 * float(beyond.double().mean()):.3g} % of their numbers, in "
        f"{100 * float(beyond.any(dim=1).double().mean()):.3g} % of the images, are no pixels, and clipped."
    )
    classes = subject.run.config.model.num_classes
    if classes > CLASSES:
        caption += f" The first {CLASSES} of {classes} classes."
    return [Figure("samples", strips, caption)]


def guidance(subject: Subject) -> Parts:
    """The same noise under growing guidance."""
    run, n = subject.run, subject.settings.images
    y = subject.in_turn(n)
    try:
        settings = grid(run.config.model, run.sigma)
    except ValueError as error:  # the model leaves nothing to guide
        raise Unavailable(f"This model cannot be guided: {error}.") from None
    strips, failed = [], []
    for setting in settings:
        label = f"w = {setting.guidance.scale:g}"
        try:
            x = subject.draw(setting, n, y)
        except Unavailable as reason:
            failed.append(f"{label}: {reason}")
            continue
        alt = f"{n} samples with guidance scale {setting.guidance.scale:g}, from the same noise as in the other rows."
        strips.append(Strip(label, subject.shown(x), alt))
    temperature = settings[-1].guidance.temperature
    branch = "the null class" if temperature == 1 else f"attention temperature τ = {temperature:g}"
    cleaned = "not denoised" if run.sigma is None else f"denoised with σ={run.sigma:g}"
    caption = (
        f"The same {n} draws of noise under guidance of scale w, away from {branch}, growing linearly along the "
        f"patches ({cleaned}; seed {subject.settings.seed})."
    )
    if (labels := run.flow.conditions.labels(y)) is not None and run.flow.conditions.differs(y):
        caption += f" Columns go through the classes: {', '.join(run.class_names[k] for k in labels.tolist())}."
    if y is not None and (numbers := numbers_of(run)):
        caption += f" They are given the {', '.join(numbers)} of held-out images."
    if not strips:
        raise Unavailable(" ".join(failed))
    return [Figure("guidance", strips, caption), *failed]


def denoising(subject: Subject) -> Parts:
    """Noisy against denoised: real images, and samples."""
    run, n, seed = subject.run, subject.settings.images, subject.settings.seed
    if (sigma := subject.training.measure(run.levels).sigma) is None:
        raise Unavailable(
            "This model was trained with uniform noise, within a level of the pixels: there is nothing to denoise."
        )
    parts: Parts = []
    try:
        held_out = subject.held_out.subset(range(min(n, len(subject.held_out))))
    except Unavailable as reason:
        parts.append(str(reason))
    else:
        values = held_out.values(run.config.model.conditioned_on)
        clean = run.measure.clean(held_out.images)
        noisy = run.measure.noisy(held_out.images, seeded_generator(seed, "report"))
        cleaned = denoise(run.flow, noisy.to(run.flow.device), sigma, values).cpu()
        strips = [
            Strip("held out", _continuous(clean), f"{len(clean)} held-out images."),
            Strip("noisy", _continuous(noisy), "The same images with Gaussian noise added."),
            Strip("denoised", _continuous(cleaned), "The same images after denoising, close to the first row."),
        ]
        caption = (
            f"Held-out images, with noise of σ = {sigma:g} (PSNR {psnr(noisy, clean):.1f} dB), and after one step of "
            f"Tweedie's formula, x + σ²∇log p(x|y) (PSNR {psnr(cleaned, clean):.1f} dB); seed {seed}."
        )
        parts.append(Figure("denoising", strips, caption))
    try:
        raw, plain = (spread(x, n) for x in (subject.raw_samples, subject.plain_samples))
    except Unavailable as reason:
        return [*parts, str(reason)]
    strips = [
        Strip("as drawn", _continuous(raw), f"{len(raw)} samples with the noise that the model has learned."),
        Strip("denoised", _continuous(plain), "The same samples after denoising."),
    ]
    caption = f"Samples as the model draws them, with noise, and denoised with σ = {sigma:g}; unguided."
    return [*parts, Figure("denoised-samples", strips, caption)]


def traces(subject: Subject) -> Parts:
    """Samples from noise to image, a stage a block."""
    run = subject.run
    count = min(TRACED, subject.settings.images)
    y = subject.in_turn(count)
    try:
        stages = trace(run.flow, count, y, seed=subject.settings.seed, denoise=run.sigma)
    except SamplingError as error:
        raise Unavailable(f"No sample could be followed: {error}.") from None
    labels = y if isinstance(y, Tensor) and run.flow.conditions.size else None
    strips = []
    for k in range(count):
        label = f"class {run.class_names[int(labels[k])]}" if labels is not None else f"sample {k}"
        images = _continuous(torch.stack([stage[k] for stage in stages]))
        alt = f"{len(images)} stages of one sample, from noise on the left to the finished image on the right."
        strips.append(Strip(label, images, alt))
    caption = (
        f"From left to right: standard normal noise, then what each of the {len(run.flow.blocks)} blocks leaves, the "
        f"last block of the stack first{' and at the end the denoised image' if run.sigma is not None else ''}. "
        f"Values beyond −1 … 1 are shown as black or white. Unguided, seed {subject.settings.seed}."
    )
    return [Figure("trace", strips, caption)]


def neighbours(subject: Subject) -> Parts:
    """Is a sample a copy of a training image?"""
    train, held_out = subject.splits.train, subject.held_out
    drawn = subject.pixels(spread(subject.samples, subject.settings.images))
    distances, which = nearest(drawn, train.images)
    levels = subject.run.levels
    found = to_8bit(train.images[which], levels)
    strips = [
        Strip("sample", to_8bit(drawn, levels), f"{len(drawn)} samples, each above its nearest training image."),
        Strip("nearest", found, "Below each sample the training image that is nearest to it."),
    ]
    caption = (
        f"Samples ({subject.setting}), and below each the nearest of {len(train):,} training images by the Euclidean "
        f"distance of levels, {float(distances.min()):.1f} to {float(distances.max()):.1f} here; 0 would be a copy."
    )
    try:
        ratio = novelty(subject.pixels(subject.samples), train.images, held_out.images)
        caption += (
            f" Over all {len(subject.samples)} samples the median distance is {ratio:.2f} times that of held-out "
            "images: about 1 is as new as those."
        )
    except ValueError as error:
        caption += f" No comparison with held-out images: {error}."
    return [Figure("neighbours", strips, caption)]


def spread(x: Tensor, count: int) -> Tensor:
    """`count` of the samples (n, …), evenly spread over the classes that they go through."""
    return x[torch.linspace(0, len(x) - 1, min(count, len(x)), device=x.device, dtype=torch.float32).round().long()]


def _continuous(x: Tensor) -> Tensor:
    """Values that are not on the levels of the data, -1 … 1, as uint8 to look at."""
    return SHOWN.pixels(x.cpu())
