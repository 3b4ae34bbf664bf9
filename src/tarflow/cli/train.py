"""`tarflow train`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import UseAppendAction, arg

from tarflow import recipes
from tarflow.cli.arguments import Device, Flag, check_for_tables, is_table_run, typed_fields
from tarflow.config import ConfigError, Logger, RunConfig, from_dict, to_dict
from tarflow.data.options import TABLE_SUFFIXES
from tarflow.recipes import Sections


@dataclasses.dataclass
class Train:
    """Train a flow on images, or on the columns of a table.

    Examples:
      tarflow train --recipe digits --out runs/digits
      tarflow train --data photos/ --image-size 64 --out runs/photos
      tarflow train --recipe cifar10 --data cifar10/ --steps 2000 --out runs/cifar10
      tarflow train --out runs/photos --resume
      tarflow train --out runs/photos --resume --steps 40000
      tarflow train --data photos/ --init afhq_model_8_768_8_8_0.07.pth --out runs/tuned
      tarflow train --data bars/ --conditions-from numbers.csv --conditions angle,brightness --out runs/bars
      tarflow train --data table.csv --events a,b --conditions c --out runs/table
      torchrun --nproc_per_node=8 -m tarflow train --recipe imagenet64 --data imagenet64/ --out runs/imagenet64

    A run directory is left: config.json, model.safetensors (the best averaged weights), metrics.jsonl, samples/,
    checkpoints/. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 save before leaving; Ctrl-C again, 5 seconds later or more, leaves
    without. Options not given come from the recipe, and are shown here as
    their defaults.
    """

    out: Annotated[Path, arg(help="the run directory")]
    recipe: Annotated[str | None, arg(help="name of a recipe, or the path of a .toml file")] = None
    resume: Annotated[Flag, arg(help="continue the run in --out, on a CPU bit for bit")] = False
    init: Annotated[str | None, arg(help="start from the weights of a run, a directory or an official .pth file")] = (
        None
    )
    log: Annotated[
        UseAppendAction[tuple[Logger, ...]],
        arg(help="who else gets metrics and sheets, beside metrics.jsonl; may be given several times"),
    ] = ()
    device: Device = "auto"


def options(argv: Sequence[str]) -> type:
    """The options of `train`; --help shows the fields of the recipe, or of the run to resume, as their defaults.

    Where the words are about a table, they are those of `tables.TrainTable`.
    """
    if not any(word.partition("=")[0].replace("_", "-") == "--conditions-from" for word in argv) and any(
        word.partition("=")[0] in ("--events", "--conditions") or word.endswith(TABLE_SUFFIXES) or is_table_run(word)
        for word in argv
    ):
        from tarflow.cli import tables  # here, because it waits for torch

        if (of_table := tables.train_options(argv)) is not None:
            check_for_tables(argv, _options({}), of_table)
            return of_table
    shown: Sections = {}
    if {"-h", "--help"} & set(argv):
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--recipe", nargs="?")
        parser.add_argument("--out", nargs="?", type=Path, default=Path())
        parser.add_argument("--resume", action="store_true")
        words, _ = parser.parse_known_args(argv)
        shown = _base(_stored(words.out) if words.resume else None, words.recipe, words.out)
    return _options(shown)


def _options(shown: Sections) -> type:
    """The options of a training on images, with these fields of the sections shown as defaults."""
    fields = [
        (name, Annotated[typed_fields(section, shown.get(name, {})), arg(name="")])
        for name, section in recipes.SECTIONS.items()
    ]
    cls = dataclasses.make_dataclass("Train", fields, bases=(Train,), kw_only=True)
    cls.__doc__ = Train.__doc__
    return cls


def run(args: Any) -> None:
    if not hasattr(args, "recipe"):
        from tarflow.cli import tables

        return tables.train(args)
    from tarflow import checkpoint, storage
    from tarflow.cli.progress import Progress
    from tarflow.devices import pick_device
    from tarflow.ranks import Ranks
    from tarflow.report.words import duration
    from tarflow.run_data import MOVED, check_outside, known_images
    from tarflow.training.directory import check_resumable
    from tarflow.training.engine import check_device
    from tarflow.training.initial import open_initial
    from tarflow.training.setup import check_sections, follow_data, open_data, resolve
    from tarflow.training.trainer import train

    device, ranks = pick_device(args.device), Ranks.from_environment()
    checkpoint.check_free(args.out, resume=args.resume)  # before the data are read, which may take long
    if ranks.first:  # the test takes the lock for a moment: another rank's would find this one's
        storage.check_not_in_use(args.out)
    stored = _stored(args.out) if args.resume else None
    typed = args.model | args.data | args.training | ({"log": args.log} if args.log else {})
    if stored is None and args.recipe is None and "source" not in typed and args.init is None:
        raise ConfigError(f"--recipe or --data: expected one; recipes: {', '.join(recipes.names())}")
    sections = recipes.with_fields(_base(stored, args.recipe, args.out), typed)
    if "source" in typed:
        sections["data"].pop("place", None)
    initial, said = None, list[str | None]()
    if args.init is not None and stored is None:
        initial = open_initial(args.init)
        sections = initial.apply(sections, typed)
        said.append(initial.other_noise(sections["training"]))
    check_device(check_sections(sections), ranks, device)  # what cannot work whatever the data are
    known = None
    if stored is not None:
        check_resumable(stored, from_dict(RunConfig, sections), args.out)
        _check_same_start(stored, args)
        # Data that are named have to be the same, no more and no less.
        known = known_images(stored.data, args.out, exact="source" in typed)
    with Progress(quiet=not ranks.first) as progress:
        try:
            if stored is None:
                check_outside("--out", args.out, sections["data"].get("source", "digits"), run=True)
                sections = follow_data(sections, {*typed, *(("image_size", "channels") if initial else ())})
            splits = open_data(sections, progress.loading, known)
        except FileNotFoundError as error:
            if stored is None:
                raise
            raise FileNotFoundError(f"{error}; {MOVED}") from None
        for name, reason in splits.skipped:
            progress.say(f"skipped {name}: {reason}")
        config = resolve(sections, splits)
        if stored is not None:
            said.append(_longer(stored, config, len(splits.train)))
        for line in filter(None, said):
            progress.say(f"{args.out}: {line}")
        progress.begin(config, splits, args.out, ranks.size)
        init = None if initial is None else initial.flow
        result = train(config, splits, args.out, resume=args.resume, init=init, device=device, report=progress.report)
    measure = "bits/dim" if config.measure.kind.bounds_pixels else "bits/dim of noisy images"
    if ranks.first:
        print(
            f"{args.out}: {result.steps} steps in {duration(result.seconds)}, best held-out {result.best_score:.4f} "
            f"{measure} at step {result.best_step}, {result.skipped} steps skipped",
            file=sys.stderr,
        )


def _stored(out: Path | None) -> RunConfig | None:
    """The config of the run in a directory, None where there is none yet."""
    from tarflow.checkpoint import CONFIG_FILE, read_config

    return read_config(out) if out is not None and (out / CONFIG_FILE).exists() else None


def _base(stored: RunConfig | None, recipe: str | None, out: Path) -> Sections:
    """The sections to start from: of the run that is resumed, of the named recipe, or of the default one."""
    if stored is None:
        return recipes.load(recipe or "default")
    if recipe is not None:
        raise ConfigError(f"--recipe {recipe}: the run in {out} has its own; leave --recipe out with --resume")
    return to_dict(stored)


def _check_same_start(stored: RunConfig, args: Any) -> None:
    """Raise ConfigError where a run that is resumed is given other weights to start from than it had."""
    began = "" if stored.training is None else stored.training.init_from
    if args.init is not None and not began.startswith(f"{args.init} ("):
        raise ConfigError(
            f"--init {args.init}: the run in {args.out} started from {began or 'no other weights'}; leave it out"
        )


def _longer(stored: RunConfig, config: RunConfig, num_images: int) -> str | None:
    """What it means that a run goes on to other steps or epochs than it was begun with; None where it does not."""
    assert stored.training is not None and config.training is not None
    before, after = (training.step_counts(num_images)[0] for training in (stored.training, config.training))
    if before == after:
        return None
    return f"{after} steps instead of {before}; from here on the learning rate follows the schedule of {after}"
