"""`tarflow train`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from tarflow import recipes
from tarflow.config import ConfigError, DataConfig, TarFlowConfig, TrainingConfig, check_value, to_dict

SECTIONS = {"model": TarFlowConfig, "data": DataConfig, "training": TrainingConfig}
DERIVED = ("levels", "class_names", "num_classes")  # follow from the data
NAMES = {"source": "data"}


@dataclasses.dataclass
class Train:
    """Train a flow on images.

    Examples:
      tarflow train --recipe digits --out runs/digits
      tarflow train --data photos/ --image-size 64 --out runs/photos
      tarflow train --recipe cifar10 --data cifar10/ --steps 2000 --out runs/cifar10
      tarflow train --out runs/photos --resume
      tarflow train --data photos/ --init afhq_model_8_768_8_8_0.07.pth --out runs/tuned
      torchrun --nproc_per_node=8 -m tarflow train --recipe imagenet64 --data imagenet64/ --out runs/imagenet64

    A run directory is left: config.json, model.safetensors (the best averaged weights), metrics.jsonl, samples/,
    checkpoints/. Ctrl-C and SIGTERM save before leaving. Options not given come from the recipe, and are shown here as
    their defaults.
    """

    out: Annotated[Path, tyro.conf.arg(help="the run directory")]
    recipe: Annotated[str | None, tyro.conf.arg(help="name of a recipe, or the path of a .toml file")] = None
    resume: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="continue the run in --out, bit for bit")
    ] = False
    init: Annotated[
        str | None, tyro.conf.arg(help="start from the weights of a run, a directory or an official .pth file")
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="where to compute")] = "auto"


def options(argv: Sequence[str]) -> type:
    """The options of `train`, with the fields of the recipe (or of the run to resume) as their defaults."""
    sections = _base(argv)
    fields: list[tuple[str, Any, Any]] = []
    for section, cls in SECTIONS.items():
        hints = get_type_hints(cls)
        for entry in dataclasses.fields(cls):
            if entry.name in DERIVED:
                continue
            default = entry.default if entry.default is not dataclasses.MISSING else None
            value = sections.get(section, {}).get(entry.name, default)
            value = value if value is None else check_value(cls, entry.name, value, section)
            hint = hints[entry.name] if value is not None else hints[entry.name] | None
            about = tyro.conf.arg(help=entry.metadata["help"], name=NAMES.get(entry.name, entry.name).replace("_", "-"))
            fields.append((entry.name, Annotated[hint, about], dataclasses.field(default=value)))
    cls = dataclasses.make_dataclass("Train", fields, bases=(Train,))
    cls.__doc__ = Train.__doc__
    cls.base = sections  # type: ignore[attr-defined]
    return cls


def run(args: Any) -> None:
    from tarflow import checkpoint, storage
    from tarflow.cli.progress import Progress
    from tarflow.devices import pick_device
    from tarflow.ranks import Ranks
    from tarflow.report.facts import duration
    from tarflow.training.setup import open_data, resolve
    from tarflow.training.trainer import train

    device, ranks = pick_device(args.device), Ranks.from_environment()
    checkpoint.check_free(args.out, resume=args.resume)  # before the data are read, which may take long
    storage.check_not_in_use(args.out)
    resuming = args.resume and (args.out / checkpoint.CONFIG_FILE).exists()
    sections = _sections(args, resuming)
    if not resuming and args.recipe is None and "source" not in _overrides(args) and args.init is None:
        raise ConfigError(f"--recipe or --data: expected one; recipes: {', '.join(recipes.names())}")
    init = None
    if args.init is not None and not resuming:
        init = open_weights(args.init)
        inherited = {k: v for k, v in to_dict(init.config).items() if k != "num_classes"}
        sections["model"] = inherited | {k: v for k, v in _overrides(args).items() if k in inherited}
    with Progress(quiet=not ranks.first) as progress:
        try:
            splits = open_data(sections, progress.loading)
        except FileNotFoundError as error:
            if not resuming:
                raise
            raise FileNotFoundError(f"{error}; where the data have moved, name their new place by --data") from None
        for name, reason in splits.skipped:
            progress.say(f"skipped {name}: {reason}")
        config = resolve(sections, splits)
        progress.begin(config, splits, args.out, ranks.size)
        result = train(config, splits, args.out, resume=args.resume, init=init, device=device, report=progress.report)
    measure = "bits/dim" if config.training and config.training.noise == "uniform" else "bits/dim of noisy images"
    if not ranks.first:
        return
    print(
        f"{args.out}: {result.steps} steps in {duration(result.seconds)}, best held-out {result.best_score:.4f} "
        f"{measure} at step {result.best_step}, {result.skipped} steps skipped",
        file=sys.stderr,
    )


def open_weights(path: str) -> Any:
    """The flow of a run, a directory, or an official checkpoint."""
    from tarflow.checkpoint import open_run
    from tarflow.interop import load_official

    return load_official(path) if Path(path).suffix in (".pth", ".pt") else open_run(path).flow


def _base(argv: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The sections to start from: of the run that is resumed, of the named recipe, or of the default one."""
    out, recipe = _peek(argv, "--out"), _peek(argv, "--recipe")
    if "--resume" in argv and out is not None and (Path(out) / "config.json").exists():
        from tarflow.checkpoint import read_config

        if recipe is not None:
            raise ConfigError(f"--recipe {recipe}: the run in {out} has its own; leave --recipe out with --resume")
        return to_dict(read_config(out))
    return recipes.load(recipe or "default")


def _peek(argv: Sequence[str], name: str) -> str | None:
    """The value of an option before the options are known."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _overrides(args: Any) -> dict[str, Any]:
    """The fields that the command line set to something else than the recipe does."""
    own = {entry.name for entry in dataclasses.fields(Train)}
    entries = [entry for entry in dataclasses.fields(args) if entry.name not in own]
    return {e.name: getattr(args, e.name) for e in entries if getattr(args, e.name) != e.default}


def _sections(args: Any, resuming: bool) -> dict[str, dict[str, Any]]:
    """The recipe's sections (or those of the run to resume) with the fields that the command line set."""
    sections = {name: dict(args.base.get(name) or {}) for name in SECTIONS}
    overrides = _overrides(args)
    for name, value in overrides.items():
        section = next(s for s, cls in SECTIONS.items() if name in {f.name for f in dataclasses.fields(cls)})
        sections[section][name] = value
    if len({"steps", "epochs"} & overrides.keys()) == 1:  # one given by hand replaces the other of the recipe
        sections["training"].pop("epochs" if "steps" in overrides else "steps", None)
    if not resuming:
        for name in DERIVED:
            sections["data"].pop(name, None)
    return sections
