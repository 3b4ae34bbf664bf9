"""`tarflow convert`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


@dataclasses.dataclass
class Convert:
    """Turn a checkpoint of apple/ml-tarflow into a directory with config.json and model.safetensors.

    Examples:
      tarflow convert afhq_model_8_768_8_8_0.07.pth afhq256
      tarflow convert model.pth mnist --noise-std 0.1
      tarflow sample afhq256 -n 16 --guidance 1 --out cats.png

    The architecture is read from the shapes in the file, the noise of its training from the file's name.
    """

    checkpoint: Annotated[Positional[Path], arg(help="the official .pth file", metavar="OFFICIAL.pth")]
    out: Annotated[Positional[Path], arg(help="the directory to write", metavar="DIR")]
    noise_std: Annotated[
        float | None, arg(help="σ of the noise in training, 0 for uniform; from the file's name when not given")
    ] = None
    image_size: Annotated[int | tuple[int, int] | None, arg(help="height and width; square when not given")] = None
    class_names: Annotated[tuple[str, ...], arg(help="names of the classes, in the order of the labels")] = ()


def run(args: Convert) -> None:
    from tarflow.checkpoint import write_config
    from tarflow.config import DataConfig, RunConfig, TrainingConfig
    from tarflow.interop import load_official, noise_from_name
    from tarflow.model.saving import WEIGHTS_FILE
    from tarflow.storage import check_vacant

    check_vacant(args.out)
    if args.noise_std is not None:
        noise, sigma = ("gaussian", args.noise_std) if args.noise_std else ("uniform", 0.0)
    elif (named := noise_from_name(args.checkpoint)) is not None:
        noise, sigma = named
    else:
        raise ValueError(f"{args.checkpoint}: its name does not say the noise of its training; give --noise-std")
    flow = load_official(args.checkpoint, args.image_size)
    if args.class_names and len(args.class_names) != flow.config.num_classes:
        raise ValueError(f"--class-names: expected {flow.config.num_classes}, got {len(args.class_names)}")
    training = TrainingConfig(noise=noise, noise_std=sigma or TrainingConfig.noise_std)
    config = RunConfig(flow.config, DataConfig(source="official", class_names=args.class_names), training)
    args.out.mkdir(parents=True, exist_ok=True)
    flow.save_weights(args.out / WEIGHTS_FILE)
    try:
        write_config(args.out, config)  # last: a directory with a config is complete
    except BaseException:
        (args.out / WEIGHTS_FILE).unlink(missing_ok=True)  # or the next conversion would find the directory taken
        raise
    c = flow.config
    kind = f"{noise} noise" + (f" σ={sigma}" if sigma else "")
    print(
        f"{args.out}: {c.channels}x{c.image_shape[0]}x{c.image_shape[1]}, patch {c.patch_size}, width {c.width}, "
        f"layers {'-'.join(map(str, c.layers))}, {c.num_classes} classes, {c.block_transforms[0]}, {kind}",
        file=sys.stderr,
    )
