"""`tarflow play`."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated

from tyro.conf import Positional, arg

from tarflow.cli.arguments import Device

MOST_PORT = 65_535


@dataclasses.dataclass
class Play:
    """Open a page to play with a flow: draw, score, walk, edit, look inside.

    Examples:
      tarflow play
      tarflow play runs/photos --port 8000

    The page is served on this machine alone, by gradio (pip install 'tarflow[ui]'), until Ctrl-C. It loads nothing from
    anywhere, sends nothing to anybody, and keeps nothing of what is shown to it. --host 0.0.0.0 lets others on the
    network in: they can use the model, and read no file.
    """

    run: Annotated[
        Positional[str],
        arg(help="a run, a directory with a model, one step-N, or a name of `tarflow models`", metavar="RUN"),
    ] = "digits"
    host: Annotated[str, arg(help="the address to listen at")] = "127.0.0.1"
    port: Annotated[int, arg(help="the port to listen at; 0 takes one that is free")] = 7860
    device: Device = "auto"


def run(args: Play) -> None:
    from tarflow.devices import pick_device
    from tarflow.play.serve import check_installed, serve
    from tarflow.pretrained import is_table_run
    from tarflow.runs import open_run

    if not 0 <= args.port <= MOST_PORT:
        raise ValueError(f"--port: expected 0 to {MOST_PORT}, got {args.port}")
    if is_table_run(args.run):
        raise ValueError(
            f"{args.run}: a flow on the columns of a table, of which there is no picture; `tarflow sample` draws rows, "
            "`tarflow score` scores them, `tarflow report` shows how well it fits"
        )
    check_installed()
    opened = open_run(args.run, device=pick_device(args.device))
    serve(opened, args.host, args.port, lambda address: print(f"{address}  (Ctrl-C ends it)", file=sys.stderr))
