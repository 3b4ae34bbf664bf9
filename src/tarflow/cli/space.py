"""`tarflow space`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from tarflow.cli.arguments import RunPath


@dataclasses.dataclass
class Space:
    """Write a Space of the Hugging Face hub: the page of `tarflow play` with this run, in a folder that starts itself.

    Examples:
      tarflow space runs/photos --out space
      hf upload alice/photos space --repo-type space

    The folder has the model, and nothing of it says where your images are or what their files are called.
    """

    run: RunPath
    out: Annotated[Path, arg(help="a new directory")]
    title: Annotated[str | None, arg(help="what it is called; the name of the run when not given")] = None
    licence: Annotated[
        str | None, arg(help="of the weights, as the hub names it: mit, cc-by-4.0, other", aliases=["--license"])
    ] = None
    requirement: Annotated[
        str | None, arg(help="what pip installs tarflow by, such as an address; tarflow[ui] of this version by default")
    ] = None


def run(args: Space) -> None:
    from tarflow import storage
    from tarflow.pretrained import name_of
    from tarflow.runs import open_run
    from tarflow.sharing.push import check_licence
    from tarflow.sharing.space import write_space

    licence = None if args.licence is None else check_licence(args.licence)
    for option, text in (("--title", args.title), ("--requirement", args.requirement)):
        if text is not None and (not text.strip() or "\n" in text):
            raise ValueError(f"{option}: expected a line of text, got {text!r}")
    storage.check_vacant(args.out, "--out")
    storage.check_writable(args.out)
    opened = open_run(args.run)
    title = args.title or name_of(opened.path) or opened.path.resolve().name
    with storage.replacing_directory(args.out) as folder:
        write_space(opened, folder, title, licence, args.requirement)
    print(f"{args.out}: starts by python {args.out / 'app.py'}", file=sys.stderr)
