"""`tarflow export`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from tarflow.cli.arguments import RunPath


@dataclasses.dataclass
class Export:
    """Write a flow as a file that other programs run, for any number of images, or rows of a table, at once.

    Examples:
      tarflow export digits-likelihood --out digits.onnx
      tarflow export runs/photos --what encode --out encode.pt2
      tarflow export runs/photos --what step --out steps/
      tarflow export runs/posterior --out posterior.onnx

    A .pt2 file is for `torch.export.load` and AOTInductor, a .onnx file for ONNX Runtime and others (`pip install
    'tarflow[export]'`). Inputs are x (B, C, H, W) as the model sees it, -1 to 1, or the events (B, N) of a table; and y
    where the model has conditions: (B,) int64 of classes, -1 for none, (B, K) of numbers, NaN for none, or both; a step
    has its cache besides. Levels, noise, class names and columns are written beside the graph. What was written is read
    again and held against the model before the file gets its name.
    """

    run: RunPath
    out: Annotated[
        Path, arg(help="model.pt2 or model.onnx; of --what step a new directory, with a file for each block")
    ]
    what: Annotated[
        Literal["log_prob", "encode", "step"],
        arg(help="log_prob: x to log p(x|y); encode: x to z and ladj; step: one token of a block, with its cache"),
    ] = "log_prob"


def run(args: Export) -> None:
    from tarflow.exporting import check_target, export
    from tarflow.tables import open_run

    check_target(args.out, args.what)
    files = export(open_run(args.run), args.out, args.what)
    size = sum(file.stat().st_size for file in files) / 1e6
    count = "" if len(files) == 1 else f", {len(files)} files"
    print(f"{args.out}: {args.what}, {size:.1f} MB{count}; computes what the model does", file=sys.stderr)
