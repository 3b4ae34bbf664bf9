"""`tarflow push`."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tarflow.cli.arguments import Device, Flag, RunPath


@dataclasses.dataclass
class Push:
    """Push a run to the Hugging Face hub, where others find it by its name, with a card that is made from the run.

    Examples:
      tarflow push runs/photos alice/photos --licence cc-by-4.0 --data "4,000 photographs of my garden" --private
      tarflow push runs/photos alice/photos --licence mit --dry-run folder

    What is pushed: config.json, model.safetensors, what was measured of these weights, a sheet of samples, and the
    card, README.md. Nothing of it says where your images are or what their files are called. It needs the extra [hub],
    and `hf auth login` or a token in HF_TOKEN; with --dry-run neither.
    """

    run: RunPath
    name: Annotated[Positional[str], arg(help="OWNER/NAME on the hub", metavar="OWNER/NAME")]
    licence: Annotated[
        str, arg(help="of the weights, as the hub names it: mit, apache-2.0, cc-by-4.0, other", aliases=["--license"])
    ]
    data: Annotated[str | None, arg(help="what the images of the training are called on the card")] = None
    private: Annotated[Flag, arg(help="for yourself, and for whom you let in")] = False
    revision: Annotated[str | None, arg(help="a branch, made where there is none, instead of main")] = None
    dry_run: Annotated[Path | None, arg(help="write the folder to this new directory instead, and push nothing")] = None
    samples: Annotated[int, arg(help="of the sheet on the card; 0 draws none")] = 32
    seed: Annotated[int, arg(help="of their noise")] = 0
    device: Device = "auto"


def run(args: Push) -> None:
    from tarflow import hub, storage
    from tarflow.cli.progress import Progress
    from tarflow.devices import pick_device
    from tarflow.runs import open_run
    from tarflow.sharing.push import Wanted, check_access, upload, write_model

    model = hub.hub_id(hub.PREFIX + args.name.removeprefix(hub.PREFIX))
    assert model is not None  # with the prefix it is one, or an error
    if args.revision is not None:
        if model.revision is not None:
            raise ValueError(f"--revision {args.revision}: {args.name} names one already; leave one of them out")
        model = model._replace(revision=args.revision)
    wanted = Wanted(model, args.licence, args.data, args.samples, args.seed)
    if args.dry_run is None:
        check_access(model)
    else:
        storage.check_vacant(args.dry_run, "--dry-run")
        storage.check_writable(args.dry_run)
    opened = open_run(args.run, device=pick_device(args.device))
    if args.dry_run is not None:
        with storage.replacing_directory(args.dry_run) as folder, Progress() as progress:
            write_model(opened, folder, wanted, progress.sampling)
        print(f"{args.dry_run}: what would be pushed to {model}", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as place, Progress() as progress:
        write_model(opened, Path(place), wanted, progress.sampling)
        progress.say(f"pushing to {model}")
        address = upload(Path(place), model, private=args.private)
    print(address)
