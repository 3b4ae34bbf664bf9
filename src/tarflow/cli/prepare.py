"""`tarflow prepare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from tarflow.cli.arguments import Flag
from tarflow.config import Aspect, DataConfig, PadWith, ValueRange

if TYPE_CHECKING:
    from tarflow.data.store.read import Manifest


def _as_trained(field: str, more: str = "") -> Any:
    """The help of the field of this name that a training has."""
    (entry,) = (entry for entry in dataclasses.fields(DataConfig) if entry.name == field)
    return arg(help=entry.metadata["help"] + more)


@dataclasses.dataclass
class Prepare:
    """Decode a set of images once, into a directory that every later command maps into memory instead of reading.

    Examples:
      tarflow prepare photos/ --image-size 64 --out prepared/photos64
      tarflow train --data prepared/photos64 --out runs/photos
      tarflow prepare --check prepared/photos64

    SOURCE is what `tarflow train --data` takes. DIR holds the pixels as they are trained on, their split, labels and
    names, and digests of what they were made of; it is whole or not there. Doing it again costs nothing where the
    source is unchanged, and is refused where it is not. Memory holds only the names while it
    is made. `--check DIR`, which stands alone, reads all of a prepared directory and says whether it is
    what was written.
    """

    source: Annotated[Positional[str], arg(help="the images", metavar="SOURCE")]
    out: Annotated[Path, arg(help="the directory to make", metavar="DIR")]
    image_size: Annotated[
        int | tuple[int, int] | None,
        arg(help="height and width in pixels, one number for a square; the images' own when not given"),
    ] = None
    aspect: Annotated[Aspect, _as_trained("aspect")] = "crop"
    pad_with: Annotated[PadWith, _as_trained("pad_with")] = "edge"
    channels: Annotated[
        Literal[1, 3] | None, arg(help="1 is grey, 3 is RGB; grey where all images are, when not given")
    ] = None
    levels: Annotated[int | None, _as_trained("levels", "; the images' own when not given")] = None
    held_out_fraction: Annotated[float, _as_trained("held_out_fraction")] = 0.1
    split_seed: Annotated[int, _as_trained("split_seed")] = 0
    image_column: Annotated[str, _as_trained("image_column")] = ""
    label_column: Annotated[str, _as_trained("label_column")] = ""
    value_range: Annotated[ValueRange, _as_trained("value_range")] = "full"
    variant: Annotated[str, _as_trained("variant")] = ""
    skip_bad: Annotated[Flag, _as_trained("skip_bad")] = False
    force: Annotated[Flag, arg(help="replace a directory that was prepared from other files, or otherwise")] = False


@dataclasses.dataclass
class Check:
    """Read all of a prepared directory once, and say whether it is what `tarflow prepare` wrote.

    Examples:
      tarflow prepare --check prepared/photos64

    Commands that open such a directory read none of its pixels beforehand. This one holds every file against the digest
    in DIR/digests.json, and names those that differ.
    """

    check: Annotated[Path, arg(help="the directory to check", metavar="DIR")]


def options(argv: Sequence[str]) -> type:
    return Check if any(word == "--check" or word.startswith("--check=") for word in argv) else Prepare


def run(args: Prepare | Check) -> None:
    from tarflow.cli.progress import Progress
    from tarflow.data.options import LoadOptions
    from tarflow.data.store.read import check_prepared
    from tarflow.data.store.write import prepare

    if isinstance(args, Check):
        with Progress() as progress:
            manifest = check_prepared(args.check, progress.checking)
        return print(f"{args.check}: sound: {_summary(manifest)}")
    names = {entry.name for entry in dataclasses.fields(args)} & {
        entry.name for entry in dataclasses.fields(LoadOptions)
    }
    with Progress() as progress:
        options = LoadOptions(**{name: getattr(args, name) for name in names}, progress=progress.loading)
        manifest, known = prepare(args.source, args.out, options, variant=args.variant, force=args.force)
        if not known:
            for name, reason in manifest.skipped:
                progress.say(f"skipped {name}: {reason}")
    print(f"{args.out}: {'up to date: ' if known else ''}{_summary(manifest)}")


def _summary(manifest: Manifest) -> str:
    """What a prepared directory holds."""
    channels, height, width = manifest.shape
    size = f"{manifest.train} training and {manifest.held_out} held-out images, {channels}x{height}x{width}"
    classes = f", {len(manifest.class_names)} classes" if manifest.labelled else ""
    variant = f", {manifest.variant}" if manifest.variant else ""
    skipped = f", {len(manifest.skipped)} skipped" if manifest.skipped else ""
    return f"{size}{classes}{variant}{skipped}"
