"""`tarflow plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from tarflow.architecture import condition_parts, joined
from tarflow.cli.arguments import Flag, typed_fields
from tarflow.config import ConfigError, DataConfig, RunConfig, TarFlowConfig, TrainingConfig, from_dict
from tarflow.jsontext import to_json

if TYPE_CHECKING:
    from tarflow.planning.plan import Plan as Plan_

OF_MODEL = ("image_size", "channels")
OF_TRAINING = ("steps", "epochs", "batch_size", "accumulate", "checkpoint_activations", "precision")


@dataclasses.dataclass
class Plan:
    """What a run will cost: parameters, FLOPs, memory of each device, hours; and whether it fits.

    Examples:
      tarflow plan imagenet64 --devices 8 --device h100
      tarflow plan cifar10 --device cpu --batch-size 64
      tarflow plan mine.toml --data photos/ --device rtx4090 --json

    Nothing is trained, and no data are needed: what a recipe leaves to them comes from its section `expects`, from
    options, or from --data. Rates of named devices are their vendors' peaks times a share that is assumed; `cpu` and
    `cuda` are measured here, by a second of matrix products. How far a plan was from what was measured is in
    docs/planning.md.
    """

    recipe: Annotated[Positional[str], arg(help="name of a recipe, or the path of a .toml file", metavar="RECIPE")]
    device: Annotated[
        str, arg(help="a100, h100, h200, l40s, rtx4090, mi300x; cpu or cuda: measured on this machine")
    ] = "cpu"
    devices: Annotated[int, arg(help="devices that share each step, in one machine")] = 1
    strategy: Annotated[
        Literal["ddp", "fsdp"],
        arg(help="ddp: everything on every device; fsdp: weights and all that belongs to them in shares"),
    ] = "ddp"
    share: Annotated[
        float | None, arg(help="of the device's rate that a step reaches, up to 1, in place of the assumed one")
    ] = None
    data: Annotated[str | None, arg(help="name or path of the images: read, to know their number")] = None
    images: Annotated[int | None, arg(help="number of training images")] = None
    num_classes: Annotated[int | None, arg(help="classes of a conditional model")] = None
    json: Annotated[Flag, arg(help="print one JSON object instead")] = False


def options(argv: Sequence[str]) -> type:
    fields = [
        ("model", Annotated[typed_fields(TarFlowConfig, {}, OF_MODEL), arg(name="")]),
        ("training", Annotated[typed_fields(TrainingConfig, {}, OF_TRAINING), arg(name="")]),
    ]
    cls = dataclasses.make_dataclass("Plan", fields, bases=(Plan,), kw_only=True)
    cls.__doc__ = Plan.__doc__
    return cls


def run(args: Any) -> None:
    from tarflow.planning.devices import find_device
    from tarflow.planning.plan import make_plan

    config, images = _config(args)
    plan = make_plan(
        config, find_device(args.device), devices=args.devices, strategy=args.strategy, images=images, share=args.share
    )
    print(to_json({"recipe": args.recipe, **plan.to_dict()}, indent=2) if args.json else as_text(args.recipe, plan))


def _config(args: Any) -> tuple[RunConfig, int | None]:
    """The config of the run, and the number of training images where it is known."""
    from tarflow import recipes

    if args.images is not None and args.images < 1:
        raise ConfigError(f"images: expected a positive number, got {args.images}")
    given = args.model if args.num_classes is None else args.model | {"num_classes": args.num_classes}
    sections = recipes.with_fields(recipes.load(args.recipe), given | args.training)
    expected: dict[str, Any] = recipes.expects(args.recipe)
    if args.data is not None:
        from tarflow.cli.progress import Progress
        from tarflow.training.setup import check_sections, follow_data, open_data, resolve

        sections["data"]["source"] = args.data
        check_sections(sections)
        with Progress() as progress:
            sections = follow_data(sections, given)
            splits = open_data(sections, progress.loading)
        run, train = resolve(sections, splits), splits.train
        return run, len(train) if args.images is None else args.images
    data = from_dict(DataConfig, sections["data"], "data")
    model = {name: value for name, value in expected.items() if name != "images"} | sections["model"]
    if not data.conditional and args.num_classes is None:
        model["num_classes"] = 0
    if "image_size" not in model:
        raise ConfigError("model.image_size: the recipe leaves it to the data; give --image-size, or --data")
    if data.conditions_from:
        if not data.numbers:
            raise ConfigError("data.conditions: name the columns of the table, whose number counts; or give --data")
        model["condition"] = joined(model.pop("num_classes", 0), len(data.numbers))
    images = expected.get("images") if args.images is None else args.images
    run = RunConfig(
        from_dict(TarFlowConfig, model, "model"), data, from_dict(TrainingConfig, sections["training"], "training")
    )
    return run, images


def as_text(recipe: str, plan: Plan_) -> str:
    """The plan as a table for a terminal."""
    model, training, device, memory = plan.model, plan.training, plan.device, plan.memory
    layers = "-".join(map(str, model.layers))
    height, width = model.image_shape
    per_step = f"{plan.steps:,} steps of {training.batch_size} images"
    shared = f"{plan.devices} x {device.label}" if plan.devices > 1 else device.label
    rate = getattr(device, plan.products) / 1e12
    precision = plan.products
    again = f" + {_count(plan.recomputed_flops)} computed again" if plan.recomputed_flops else ""
    micro = training.batch_size // (plan.devices * training.accumulate)
    # The share of its peak that a device reaches, by which a plan multiplies.
    share = (plan.step_flops + plan.recomputed_flops) / plan.devices / plan.compute_seconds / (rate * 1e12)
    rows = [
        ("model", f"{model.channels}x{height}x{width}, patch {model.patch_size}, width {model.width}, layers {layers}"),
        ("", f"{model.num_patches} patches of {model.patch_dim} numbers, {_given(model)}"),
        ("parameters", f"{plan.parameters:,}"),
        ("FLOP", f"{_count(plan.forward_flops)} forward, an image"),
        ("", f"{_count(plan.step_flops)} a step{again}"),
        ("", f"{_count(plan.steps * plan.step_flops)} the run, {per_step}"),
        ("device", f"{shared}: {rate:.4g} TFLOP/s in {precision} ({device.source}), of which {share:.0%} "
         f"{'is assumed' if device.assumed else 'is expected'}"),
        ("memory", f"{_gigabytes(memory.peak)} of {_gigabytes(device.memory)} on each device at the most"),
        ("  weights", _gigabytes(memory.weights)),
        ("  gradients", _gigabytes(memory.gradients)),
        ("  moments", _gigabytes(memory.moments)),
        ("  averages", _gigabytes(memory.averaged)),
        ("  activations", f"{_gigabytes(memory.activations)} of {micro} images, recomputing "
         f"{training.checkpoint_activations}"),
        ("  at work", _gigabytes(memory.working)),
        ("  images", _gigabytes(memory.images)),
        ("a step", f"{_seconds(plan.step_seconds)}: products {_seconds(plan.compute_seconds)}, "
         f"update {_seconds(plan.update_seconds)}"
         + (f", exchange {_seconds(plan.exchange_seconds)} beside the products" if plan.devices > 1 else "")),
        ("the run", f"{_duration(plan.hours)}, {plan.devices * plan.hours:,.1f} device hours, without scores, samples "
         "and checkpoints"),
    ]  # fmt: skip
    lines = [f"{recipe}, {plan.strategy if plan.devices > 1 else 'one device'}"]
    lines += [f"{name:14}{text}".rstrip() for name, text in rows]
    if not plan.fits:
        lines += ["", "It does not fit: a tenth of the memory is left to others. What would make it fit, each alone:"]
        lines += [f"  {line}" for line in plan.advice]
    return "\n".join(lines)


def _given(model: TarFlowConfig) -> str:
    sizes = dict(condition_parts(model.conditioned_on))
    (classes,), (numbers,) = (sizes.get(name, (0,)) for name in ("classes", "vector"))
    return f"{classes or 'no'} classes" + (f", given {numbers} number{'s' * (numbers > 1)}" if numbers else "")


def _count(number: float) -> str:
    return f"{number:.2e}"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB" if number < 1e11 else f"{number / 1e9:.0f} GB"


def _seconds(number: float) -> str:
    return f"{number:.2f} s" if number >= 1 else f"{number * 1e3:.3g} ms"


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{hours * 60:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
