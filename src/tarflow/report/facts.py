"""The sections of the report that are words, numbers and drawings: what was trained, how, and how well it scores."""

from __future__ import annotations

import math
import platform
from typing import Any

import torch

from tarflow import __version__
from tarflow.evaluation.likelihood.evaluate import Likelihood
from tarflow.evaluation.likelihood.gaussian import NoYardstick
from tarflow.report.architecture import block_inside, parameters_of, stack
from tarflow.report.charts import Series, finite, line_chart
from tarflow.report.content import Drawing, Parts
from tarflow.report.markup import Markup, element, table
from tarflow.report.subject import Subject, Unavailable

LABELS = {
    "given": "its own label given, log p(x|y)",
    "null": "the null class, log p(x|∅)",
    "marginal": "no label, log of the mean of p(x|y) over all classes",
    "none": "no classes, log p(x)",
}


KINDS = {1: "grey", 3: "RGB"}  # by channels


def headline(subject: Subject) -> list[tuple[str, str]]:
    """The numbers to see first: (what it is, value)."""
    model = subject.run.config.model
    height, width = model.image_shape
    facts = [
        ("images", f"{model.channels}×{height}×{width}"),
        ("parameters", f"{parameters_of(subject.run.flow):,}"),
    ]
    try:
        best = subject.likelihoods[0]
    except Unavailable:
        return facts
    facts.append((f"held-out {unit(best)}", quoted(best.mean, best.standard_error)))
    if best.yardstick:
        facts.append(("of the Gaussian yardstick", quoted(best.yardstick.mean, best.yardstick.standard_error)))
    return facts


def trained(subject: Subject) -> Parts:
    """What was trained on what."""
    run, rows = subject.run, []
    model, data, training = run.config.model, run.config.data, run.config.training
    height, width = model.image_shape
    rows.append(
        (
            "Images",
            f"{KINDS.get(model.channels, f'{model.channels} channels')}, {height}×{width} pixels, {run.levels} levels",
        )
    )
    if data is None:
        rows.append(("Data", "not stored with the model"))
    else:
        rows.append(("Data", data.source + (", half of it mirrored" if data.flip else "")))
        try:
            splits = subject.splits
            own = "the data's own split" if splits.own_split else f"split by seed {data.split_seed}"
            rows.append(
                ("Images seen", f"{len(splits.train):,} to train on, {len(splits.held_out):,} held out ({own})")
            )
        except Unavailable as reason:
            rows.append(("Images seen", str(reason)))
    names = ", ".join(run.class_names[:20]) + (", …" if len(run.class_names) > 20 else "")
    rows.append(("Classes", f"{model.num_classes}: {names}" if model.num_classes else "none: p(x) is learned"))
    if training is None:
        rows.append(("Training", "not stored with the model"))
    else:
        rows.append(
            (
                "Noise",
                f"Gaussian, σ = {training.noise_std:g} where pixels span −1 to 1: a model of noisy images"
                if run.sigma is not None
                else "uniform within a level: a model of the data, scored in bits/dim",
            )
        )
        length = f"{training.steps:,} steps" if training.steps is not None else f"{training.epochs:g} epochs"
        rows.append(("Training", f"{length} of {training.batch_size} images, seed {training.seed}"))
        rows.append(
            (
                "Optimizer",
                f"AdamW {training.betas[0]:g}/{training.betas[1]:g}, learning rate {training.lr:g} to "
                f"{training.final_lr:g}, weight decay {training.weight_decay:g}, EMA decay {training.ema_decay:g}"
                + (f", label drop {training.label_drop:g}" if model.num_classes else ""),
            )
        )
    rows += _progress(subject)
    layers = "-".join(map(str, model.layers))
    rows.append(
        (
            "Model",
            f"{model.transform} TarFlow, {model.num_patches} patches of {model.patch_size}×{model.patch_size}, width "
            f"{model.width}, layers {layers}, {parameters_of(run.flow):,} parameters",
        )
    )
    versions = f"tarflow {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    rows.append(("This report", f"{versions}; weights from {run.path}, seed {subject.settings.seed}"))
    return [table([], rows, f"Data, training and model of {subject.name}")]


def _progress(subject: Subject) -> list[tuple[str, str]]:
    """What metrics.jsonl says of steps and time."""
    timed = [entry for entry in subject.metrics if math.isfinite(_number(entry, "seconds"))]
    rows = []
    if timed:
        last = timed[-1]
        rows.append(("Time", f"{last['step']:,} steps in {duration(last['seconds'])}"))
    prefix = "held_out_"
    scored = [(_number(e, k), e["step"], k) for e in subject.metrics for k in e if k.startswith(prefix)]
    scored = [entry for entry in scored if math.isfinite(entry[0])]
    if scored:
        score, step, key = min(scored)
        unit = unit_name(key.removeprefix(prefix))
        rows.append(("Best weights", f"step {step:,}, held-out {score:.4f} {unit} while training"))
    return rows


def _number(entry: dict[str, Any], name: str) -> float:
    """A value of a line of metrics.jsonl; not a number where there is none."""
    value = entry.get(name)
    return math.nan if value is None else float(value)


def architecture(subject: Subject) -> Parts:
    """Figure 2 of the paper, from the modules of this model."""
    flow = subject.run.flow
    drawings = [stack(f"{subject.prefix}stack", flow), block_inside(f"{subject.prefix}inside", flow)]
    caption = (
        f"Left, or above: {len(flow.blocks)} blocks from image to noise; samples go the other way. The squares are "
        "the sequence of patches: a block sees the lighter ones before it predicts a darker one. Right, or below: what "
        "each block computes for a patch. Drawn from the modules of the loaded model."
    )
    return [Drawing(drawings, caption)]


def curves(subject: Subject) -> Parts:
    """Loss and bits/dim over the steps."""
    metrics = subject.metrics
    if not metrics:
        raise Unavailable("There is no metrics.jsonl beside the model, so nothing is known of its training.")
    bits = next((k for e in metrics for k in ("bits_per_dim", "noisy_bits_per_dim") if k in e), "bits_per_dim")
    loss = [(float(e["step"]), _number(e, "loss")) for e in metrics if "loss" in e]
    train = [(float(e["step"]), _number(e, bits)) for e in metrics if bits in e]
    held_out_name = f"held_out_{bits}"
    held_out = [(float(e["step"]), _number(e, held_out_name)) for e in metrics if held_out_name in e]
    series = [Series("training", train, "first"), Series("held out", held_out, "second", dots=True)]
    text = "Left, or above: the training loss. Right, or below: training and held-out images, in "
    text += "bits/dim of the data." if bits == "bits_per_dim" else "bits/dim of noisy images."
    try:
        yardstick = subject.likelihoods[0].yardstick
    except Unavailable:
        yardstick = None
    if yardstick and train:
        level = [(train[0][0], yardstick.mean), (train[-1][0], yardstick.mean)]
        series.append(Series("Gaussian", level, "third"))
        text += f" The dashed line is the Gaussian yardstick, {yardstick.mean:.3f}."
    drawings = [
        line_chart(f"{subject.prefix}{name}", chosen, title=title, x_label="step", y_label=label)
        for name, chosen, title, label in (
            ("loss", [Series("training", loss, "first")], "Training loss", "loss"),
            ("bits", series, "Bits per dimension while training", unit_name(bits)),
        )
        if any(finite(s.points) for s in chosen)
    ]
    if not drawings:
        raise Unavailable("No line of metrics.jsonl holds a finite number.")
    return [
        Drawing(
            drawings,
            f"{text} Training values are those of single batches with the weights of that step; held-out ones are "
            "those of the averaged weights.",
        )
    ]


def likelihood(subject: Subject) -> Parts:
    """Held-out bits/dim by its measure, beside the yardstick."""
    results = subject.likelihoods
    first = results[0]
    rows = [[f"this model, {LABELS[r.labels]}", quoted(r.mean, r.standard_error), advantage(r)] for r in results]
    if first.yardstick:
        rows.append(["Gaussian yardstick", quoted(first.yardstick.mean, first.yardstick.standard_error), "—"])
    caption = f"Held-out {unit(first)}: {first.measure}"
    head = ["scored by", f"{unit(first)} ± standard error", "beside the Gaussian"]
    text = (
        f"Lower is better. Mean over {first.images:,} held-out images and {first.draws} draws of the noise each (seed "
        f"{first.seed}); the errors are over images, and of the difference image by image."
    )
    if subject.splits.held_out.images.shape[0] > first.images:
        text += f" They are a choice by that seed of the {len(subject.splits.held_out):,} held-out images."
    wrong = max(r.not_finite for r in results)
    if wrong:
        text += f" {wrong} images have a log-density that is not finite."
    yardstick = subject.yardstick
    note = f"{yardstick.note[0].upper()}{yardstick.note[1:]}."
    parts: Parts = [
        table(head, rows, caption, style="numbers"),
        text,
        note if isinstance(yardstick, NoYardstick) else f"The yardstick: {yardstick.note}.",
    ]
    if not first.measure.kind.bounds_pixels:
        parts.append(
            "This is the density of images with noise added. It is no number of bits for the data, and not comparable "
            "with bits/dim of a model that was trained with uniform noise."
        )
    return parts


def quoted(mean: float, error: float) -> str:
    """A number with its standard error, or alone where there is none.

    >>> quoted(2.31516, 0.01156), quoted(2.0, float("nan"))
    ('2.315 ± 0.012', '2.000')
    """
    return f"{mean:.3f} ± {error:.3f}" if math.isfinite(error) else f"{mean:.3f}"


def advantage(result: Likelihood) -> str:
    """How much the model is better or worse than the yardstick, where there is one."""
    found = result.yardstick
    if found is None:
        return "—"
    word = "better" if found.advantage >= 0 else "worse"
    return f"{quoted(abs(found.advantage), found.advantage_standard_error)} {word}"


def unit(result: Likelihood) -> str:
    """What the mean of a likelihood is counted in."""
    return unit_name(result.measure.figure)


def unit_name(key: str) -> str:
    """The unit of a key of metrics.jsonl."""
    return "bits/dim" if key == "bits_per_dim" else "noisy bits/dim"


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(36.3), duration(151.7), duration(8000), duration(400_000)
    ('36 s', '2 min 32 s', '2 h 13 min', '4 d 15 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def cards(facts: list[tuple[str, str]]) -> Markup:
    """Facts as a list of names and values."""
    return element("dl", *(element("div", element("dt", k), element("dd", v)) for k, v in facts), class_="cards")
