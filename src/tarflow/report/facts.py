"""The sections on the training: what was trained on what, the architecture, and the curves.

The architecture is drawn from the modules of the flow, not from what the config promises: the stack of blocks, and the
inside of one (figure 2 of the paper), with the lines in `templates/architecture.svg`.
"""

from __future__ import annotations

import math
import platform
from typing import Any

import torch
from markupsafe import Markup

from tarflow import __version__
from tarflow.architecture import BY_NUMBER, MIXED, plain
from tarflow.config import DataConfig, TrainingConfig
from tarflow.model.flow import TarFlow
from tarflow.report.charts import Series, finite, line_chart
from tarflow.report.likelihood import unit_of
from tarflow.report.parts import TEMPLATES, Drawing, Parts, Table
from tarflow.report.subject import Subject, Unavailable
from tarflow.report.words import duration, numbered, plural, quoted, short

KINDS = {1: "grey", 3: "RGB"}  # by channels
Rows = dict[str, str]


def headline(subject: Subject) -> Rows:
    """The numbers to see first."""
    model = subject.run.config.model
    height, width = model.image_shape
    facts = {"images": f"{model.channels}×{height}×{width}", "parameters": f"{parameters_of(subject.run.flow):,}"}
    if (best := subject.likelihood) is not None:
        facts[f"held-out {unit_of(best.scoring.measure.figure)}"] = quoted(best.mean, best.standard_error)
        if best.yardstick:
            facts["of the Gaussian yardstick"] = quoted(best.yardstick.mean, best.yardstick.standard_error)
    return facts


def trained(subject: Subject) -> Parts:
    """What was trained on what."""
    run, model = subject.run, subject.run.config.model
    data, training = run.config.data, run.config.training
    height, width = model.image_shape
    rows = {"Images": f"{KINDS[model.channels]}, {height}×{width} pixels, {run.levels} levels"}
    rows |= {"Data": "not stored with the model"} if data is None else _data(subject, data)
    names = ", ".join(run.class_names[:20]) + (", …" if len(run.class_names) > 20 else "")
    rows["Classes"] = f"{len(run.class_names)}: {names}" if run.class_names else "none"
    if data is not None and data.numbers:
        rows["Given"] = ", ".join(data.numbers)
    elif not run.class_names:
        rows["Classes"] += ": p(x) is learned"
    rows |= (
        {"Training": "not stored with the model"}
        if training is None
        else _training(training, bool(run.flow.conditions))
    )
    rows |= _progress(subject)
    kinds = " and ".join(dict.fromkeys(model.block_transforms))
    rows["Model"] = (
        f"{kinds} TarFlow, {model.num_patches} patches of {model.patch_size}×{model.patch_size}, width "
        f"{model.width}, layers {'-'.join(map(str, model.layers))}, {parameters_of(run.flow):,} parameters"
    )
    rows["This report"] = (
        f"tarflow {__version__}, torch {torch.__version__}, Python {platform.python_version()}; weights from "
        f"{run.path}, seed {subject.settings.seed}"
    )
    return [Table(f"Data, training and model of {subject.name}", [], list(rows.items()))]


def _data(subject: Subject, data: DataConfig) -> Rows:
    try:
        splits = subject.splits
        own = "the data's own split" if splits.own_split else f"split by seed {data.split_seed}"
        seen = f"{len(splits.train):,} to train on, {len(splits.held_out):,} held out ({own})"
    except Unavailable as reason:
        seen = str(reason)
    size = (data.crop_from,) * 2 if isinstance(data.crop_from, int) else data.crop_from
    shapes = {"crop": "", "pad": f", padded with {data.pad_with}", "stretch": ", stretched to one shape"}
    changed = (
        shapes[data.aspect]
        + (f", random windows of {size[0]}×{size[1]} pixels" if size else "")
        + (", half of it mirrored" if data.flip else "")
        + (f", random crops with {data.crop_padding} pixels a side" if data.crop_padding else "")
    )
    return {"Data": data.source + changed, "Images seen": seen}


def _training(training: TrainingConfig, conditional: bool) -> Rows:
    length = f"{training.steps:,} steps" if training.steps is not None else f"{training.epochs:g} epochs"
    return {
        "Noise": f"Gaussian, σ = {training.noise_std:g} where pixels span −1 to 1: a model of noisy images"
        if training.measure(256).sigma is not None
        else "uniform within a level: a model of the data, scored in bits/dim",
        "Training": f"{length} of {training.batch_size} images, seed {training.seed}",
        "Optimizer": f"AdamW {training.betas[0]:g}/{training.betas[1]:g}, learning rate {training.lr:g} to "
        f"{training.final_lr:g}, weight decay {training.weight_decay:g}, EMA decay {training.ema_decay:g}"
        + (f", label drop {training.label_drop:g}" if conditional else ""),
    }


def _progress(subject: Subject) -> Rows:
    """What metrics.jsonl says of steps and time."""
    rows = {}
    timed = [entry for entry in subject.metrics if math.isfinite(_number(entry, "seconds"))]
    if timed:
        last = timed[-1]
        rows["Time"] = f"{last['step']:,} steps in {duration(last['seconds'])}"
    prefix = "held_out_"
    scored = [(_number(e, k), e["step"], k) for e in subject.metrics for k in e if k.startswith(prefix)]
    scored = [entry for entry in scored if math.isfinite(entry[0])]
    if scored:
        score, step, key = min(scored)
        unit = unit_of(key)
        rows["Best weights"] = f"step {step:,}, held-out {score:.4f} {unit} while training"
    return rows


def _number(entry: dict[str, Any], name: str) -> float:
    """A value of a line of metrics.jsonl; not a number where there is none."""
    value = entry.get(name)
    return math.nan if value is None else float(value)


def architecture(subject: Subject) -> Parts:
    """Figure 2 of the paper, from the modules of this model."""
    flow = subject.run.flow
    caption = (
        f"Left, or above: {len(flow.blocks)} blocks from image to noise; samples go the other way. The squares are "
        "the sequence of patches: a block sees the lighter ones before it predicts a darker one. Right, or below: what "
        "each block computes for a patch. Drawn from the modules of the loaded model."
    )
    drawings = [stack(f"{subject.prefix}stack", flow), *insides(f"{subject.prefix}inside", flow)]
    return [Drawing(drawings, caption)]


def curves(subject: Subject) -> Parts:
    """Loss and bits/dim over the steps."""
    metrics = subject.metrics
    if not metrics:
        raise Unavailable("There is no metrics.jsonl beside the model, so nothing is known of its training.")
    bits = next((k for e in metrics for k in ("bits_per_dim", "noisy_bits_per_dim") if k in e), "bits_per_dim")
    loss, train, held_out = (
        [(float(e["step"]), _number(e, name)) for e in metrics if name in e]
        for name in ("loss", bits, f"held_out_{bits}")
    )
    series = [Series("training", train, "first"), Series("held out", held_out, "second", dots=True)]
    text = "Left, or above: the training loss. Right, or below: training and held-out images, in "
    text += "bits/dim of the data." if bits == "bits_per_dim" else "bits/dim of noisy images."
    yardstick = subject.likelihood.yardstick if subject.likelihood else None
    if yardstick and train:
        level = [(train[0][0], yardstick.mean), (train[-1][0], yardstick.mean)]
        series.append(Series("Gaussian", level, "third"))
        text += f" The dashed line is the Gaussian yardstick, {yardstick.mean:.3f}."
    unit = unit_of(bits)
    drawings = [
        line_chart(f"{subject.prefix}{name}", chosen, title=title, x_label="step", y_label=label)
        for name, chosen, title, label in (
            ("loss", [Series("training", loss, "first")], "Training loss", "loss"),
            ("bits", series, "Bits per dimension while training", unit),
        )
        if any(finite(s.points) for s in chosen)
    ]
    if not drawings:
        raise Unavailable("No line of metrics.jsonl holds a finite number.")
    text += " Training values are those of single batches with the weights of that step; held-out ones are those of "
    return [Drawing(drawings, text + "the averaged weights.")]


def stack(name: str, flow: TarFlow) -> Markup:
    """The image cut into patches, every block with its direction, and the latent below. `name` prefixes the ids."""
    blocks = [
        {
            "layers": len(b.layers),
            "weights": short(sum(p.numel() for p in b.parameters())),
            "flipped": b.order.is_flipped,
        }
        for b in flow.blocks
    ]
    return _drawn("stack", name, flow.config, blocks, "V" if flow.base.follows else "I")


COMPUTED = {  # by the transform: what a block predicts of a patch, and what it makes of it
    "affine": ("shift, log-scale", "z = (x − shift) · exp(−log-scale)"),
    "additive": ("shift (volume-preserving)", "z = x − shift"),
    "spline": ("spline, shift, log-scale", "z = (spline(x) − shift) · exp(−log-scale)"),
}


def insides(name: str, flow: TarFlow) -> list[Markup]:
    """What is in a block, from its sequence to what it makes of a patch: a drawing for each kind of block there is.

    `name` prefixes the ids.
    """
    kinds: dict[str, list[int]] = {}
    for number, kind in enumerate(flow.config.block_transforms):
        kinds.setdefault(kind, []).append(number)
    several = len(kinds) > 1
    return [_inside(f"{name}-{k}", flow, kind, kinds[kind], several) for k, kind in enumerate(kinds)]


def _inside(name: str, flow: TarFlow, kind: str, numbers: list[int], several: bool) -> Markup:
    """The inside of the blocks of these numbers, which are of one kind; said where there are `several` kinds."""
    config, block = flow.config, flow.blocks[numbers[0]]
    layers = sorted({len(flow.blocks[number].layers) for number in numbers})
    depth = "" if len(layers) == 1 else f"{layers[0]} to "
    predicted, made = COMPUTED[plain(kind)]
    of_patch = "of patch i, number after number" if BY_NUMBER in kind else "of patch i"
    first = "" if config.start_token else "; the first is left as it is"
    which = f"block{'s' * (len(numbers) > 1)} {numbered(numbers)}: " if several else ""
    width, heads = config.width, plural(config.width // config.head_dim, "head")
    boxes = [  # (what it is, in detail, its style)
        (f"{which}patches before i, in its order", f"{config.patch_dim} numbers each", "latent"),
        (
            f"linear, {config.patch_dim} → {width}",
            "+ position"
            if block.embedding is None
            else "+ position + " + ("class" if config.num_classes else "condition"),
            "part",
        ),
        (
            f"{depth}{plural(layers[-1], 'causal Transformer layer')}",
            f"width {width}, {heads} of {config.head_dim}, MLP {config.expansion * width}",
            "part",
        ),
        (f"linear, {width} → {block.proj_out.out_features}", "moved on by one patch", "part"),
        (predicted, of_patch, "latent"),
        (made, f"of patch i{first}", "block"),
    ]
    if MIXED in kind:
        boxes.insert(0, ("a triangular matrix", "mixes the numbers of each patch", "part"))
    return _drawn("inside", name, boxes)


def _drawn(macro: str, *values: Any) -> Markup:
    return Markup(getattr(TEMPLATES.get_template("architecture.svg").module, macro)(*values))


def parameters_of(flow: TarFlow) -> int:
    """How many numbers were learned."""
    return sum(parameter.numel() for parameter in flow.parameters())
