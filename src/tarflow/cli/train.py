"""`tarflow train`."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from tarflow import recipes
from tarflow.config import ConfigError, DataConfig, TarFlowConfig, TrainingConfig, check_value, from_dict, to_dict

SECTIONS = {"model": TarFlowConfig, "data": DataConfig, "training": TrainingConfig}
# Fields that follow from the data and the weights to start from, or are drawn.
DERIVED = ("levels", "class_names", "num_classes", "place", "train_digest", "held_out_digest", "init_from", "run")
NAMES = {"source": "data"}


@dataclasses.dataclass
class Train:
    """Train a flow on images.

    Examples:
      tarflow train --recipe digits --out runs/digits
      tarflow train --data photos/ --image-size 64 --out runs/photos
      tarflow train --recipe cifar10 --data cifar10/ --steps 2000 --out runs/cifar10
      tarflow train --out runs/photos --resume
      tarflow train --out runs/photos --resume --steps 40000
      tarflow train --data photos/ --init afhq_model_8_768_8_8_0.07.pth --out runs/tuned
      torchrun --nproc_per_node=8 -m tarflow train --recipe imagenet64 --data imagenet64/ --out runs/imagenet64

    A run directory is left: config.json, model.safetensors (the best averaged weights), metrics.jsonl, samples/,
    checkpoints/. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save before leaving; Ctrl-C again, 5 seconds later or more, leaves
    without. Options not given come from the recipe, and are shown here as
    their defaults.
    """

    out: Annotated[Path, tyro.conf.arg(help="the run directory")]
    recipe: Annotated[str | None, tyro.conf.arg(help="name of a recipe, or the path of a .toml file")] = None
    resume: Annotated[
        tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="continue the run in --out, on a CPU bit for bit")
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
    cls.base, cls.typed = sections, _typed(argv)  # type: ignore[attr-defined]
    return cls


def run(args: Any) -> None:
    from tarflow import checkpoint, storage
    from tarflow.cli.progress import Progress
    from tarflow.data.identity import MOVED, check_run_place
    from tarflow.devices import pick_device
    from tarflow.evaluation.run_data import known_images
    from tarflow.ranks import Ranks
    from tarflow.report.facts import duration
    from tarflow.training.engine import check_device
    from tarflow.training.resuming import extend
    from tarflow.training.setup import (
        check_architecture,
        check_sections,
        check_sections_resumable,
        follow_data,
        open_data,
        resolve,
    )
    from tarflow.training.trainer import train

    device, ranks = pick_device(args.device), Ranks.from_environment()
    checkpoint.check_free(args.out, resume=args.resume)  # before the data are read, which may take long
    if ranks.first:  # the test takes the lock for a moment: another rank's would find this one's
        storage.check_not_in_use(args.out)
    resuming = args.resume and (args.out / checkpoint.CONFIG_FILE).exists()
    sections = _sections(args, resuming)
    if not resuming and args.recipe is None and "source" not in _overrides(args) and args.init is None:
        raise ConfigError(f"--recipe or --data: expected one; recipes: {', '.join(recipes.names())}")
    init, said = None, list[str]()
    if args.init is not None and not resuming:
        init, said = _start_from(args, sections)
        check_architecture(init.config, from_dict(TarFlowConfig, sections["model"], "model"))
    check_device(check_sections(sections, ranks), ranks, device)  # what cannot work whatever the data are
    stored = checkpoint.read_config(args.out) if resuming else None
    if stored is not None:
        check_sections_resumable(stored, sections, args.out)
    if args.init is not None and stored is not None and stored.training is not None:
        began = stored.training.init_from
        if not began.startswith(f"{args.init} ("):
            raise ConfigError(
                f"--init {args.init}: the run in {args.out} started from {began or 'no other weights'}; leave it out"
            )
    known = None if stored is None else known_images(stored.data, args.out)
    if known is not None and "source" in args.typed:  # data that are named have to be the same, no more and no less
        known = dataclasses.replace(known, names=lambda: None)
    with Progress(quiet=not ranks.first) as progress:
        try:
            if not resuming:
                check_run_place(args.out, sections["data"].get("source", "digits"))
                sections = follow_data(sections, args.typed | ({"image_size", "channels"} if init else set()))
            splits = open_data(sections, progress.loading, known)
        except FileNotFoundError as error:
            if not resuming:
                raise
            raise FileNotFoundError(f"{error}; {MOVED}") from None
        for name, reason in splits.skipped:
            progress.say(f"skipped {name}: {reason}")
        config = resolve(sections, splits)
        if resuming and ranks.first and (longer := extend(args.out, config, len(splits.train))) is not None:
            said = [longer]
        for line in said:
            progress.say(f"{args.out}: {line}")
        progress.begin(config, splits, args.out, ranks.size)
        result = train(config, splits, args.out, resume=args.resume, init=init, device=device, report=progress.report)
    measure = "bits/dim" if config.measure.kind.bounds_pixels else "bits/dim of noisy images"
    if not ranks.first:
        return
    print(
        f"{args.out}: {result.steps} steps in {duration(result.seconds)}, best held-out {result.best_score:.4f} "
        f"{measure} at step {result.best_step}, {result.skipped} steps skipped",
        file=sys.stderr,
    )


def _start_from(args: Any, sections: dict[str, dict[str, Any]]) -> tuple[Any, list[str]]:
    """The flow that `--init` names, and what to say of it; the sections get its architecture and its noise.

    A model of noisy images that goes on with other noise is another model: that has to be typed, and is said.
    """
    import torch

    flow, noise = open_weights(args.init)
    typed = _overrides(args)
    inherited = {k: v for k, v in to_dict(flow.config).items() if k != "num_classes"}
    sections["model"] = inherited | {k: v for k, v in typed.items() if k in inherited}
    training = sections["training"]
    digest = hashlib.blake2b(digest_size=8)
    for tensor in flow.state_dict().values():
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    training["init_from"] = f"{args.init} ({digest.hexdigest()})"
    if noise is None:
        return flow, []
    training |= {k: v for k, v in noise.items() if k not in typed}
    if all(training.get(k) == v for k, v in noise.items()):
        return flow, []
    return flow, [f"starts from weights of {_noise(noise)}, and trains with {_noise(training)}"]


def _noise(fields: Mapping[str, Any]) -> str:
    return "uniform noise" if fields["noise"] == "uniform" else f"gaussian noise of σ {fields.get('noise_std')}"


def open_weights(path: str) -> tuple[Any, dict[str, Any] | None]:
    """The flow of a run, a directory, or an official checkpoint, and the noise of its training; None where unknown."""
    from tarflow.checkpoint import open_run
    from tarflow.interop import load_official, noise_from_name

    if Path(path).suffix in (".pth", ".pt"):
        named = noise_from_name(path)
        return load_official(path), None if named is None else _noise_fields(*named)
    run = open_run(path)
    return run.flow, None if run.config.training is None else _noise_fields(run.noise, run.sigma)


def _noise_fields(kind: str, sigma: float | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"noise": kind}
    return fields if kind == "uniform" else fields | {"noise_std": sigma}


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
    value = None
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word == name and not following.startswith("--"):  # else the parser says that its value is missing
            value = following or None
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value


def _typed(argv: Sequence[str]) -> set[str]:
    """The fields that stand on the command line, whatever their value."""
    words = {word[2:].partition("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    words |= {word.removeprefix("no-") for word in words}
    names = {entry.name for cls in SECTIONS.values() for entry in dataclasses.fields(cls)}
    return {name for name in names if NAMES.get(name, name).replace("_", "-") in words}


def _overrides(args: Any) -> dict[str, Any]:
    """The fields that the command line set: what was typed counts, also where the recipe says the same."""
    return {entry.name: getattr(args, entry.name) for entry in dataclasses.fields(args) if entry.name in args.typed}


def _sections(args: Any, resuming: bool) -> dict[str, dict[str, Any]]:
    """The recipe's sections (or those of the run to resume) with the fields that the command line set."""
    sections = {name: dict(args.base.get(name) or {}) for name in SECTIONS}
    overrides = _overrides(args)
    for name, value in overrides.items():
        section = next(s for s, cls in SECTIONS.items() if name in {f.name for f in dataclasses.fields(cls)})
        sections[section][name] = value
    if len({"steps", "epochs"} & overrides.keys()) == 1:  # one given by hand replaces the other of the recipe
        sections["training"].pop("epochs" if "steps" in overrides else "steps", None)
    if "source" in overrides:
        sections["data"].pop("place", None)
    if not resuming:
        for name in DERIVED:
            sections["data"].pop(name, None)
    return sections
