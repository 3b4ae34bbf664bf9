"""`tarflow models`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

from tyro.conf import arg

from tarflow.cli.arguments import Flag
from tarflow.jsontext import to_json

HEADINGS = ("name", "draws", "images", "classes", "parameters", "MB", "held out", "licence")


@dataclasses.dataclass
class Models:
    """List the models that come with the package: what they draw, their size, and what their cards say of them.

    Examples:
      tarflow models
      tarflow sample digits -n 50 --out digits.png

    Any RUN of a command may be the name of one of them, and a path of that name goes before it. A held-out figure is
    of images that the model was not trained on; the card, README.md beside the weights, has the command that measures
    it again, and so has --json.
    """

    json: Annotated[Flag, arg(help="print one JSON object instead, with all that the cards say")] = False


def run(args: Models) -> None:
    from tarflow import pretrained

    known = [pretrained.facts(name) for name in pretrained.names()]
    if args.json:
        print(to_json({"models": known}, indent=2))
        return
    rows = [HEADINGS, *map(_row, known)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(model: Mapping[str, Any]) -> tuple[str, ...]:
    held_out, data = model["held_out"], model["data"]
    figure = held_out["figure"].replace("_per_", "/").replace("_", " ")  # as `evaluate` names it
    return (
        model["name"],
        model["draws"],
        "x".join(map(str, model["image_shape"])),
        str(model["classes"] or "none"),
        f"{model['parameters']:,}",
        f"{model['megabytes']:.2f}",
        f"{held_out['value']:.3f} ± {held_out['standard_error']:.3f} {figure}",
        f"{model['license'].upper()}, of data {data['licence']}",
    )
