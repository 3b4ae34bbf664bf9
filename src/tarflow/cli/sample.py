"""`tarflow sample`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from tarflow.checkpoint import Run


@dataclasses.dataclass
class Sample:
    """Draw images from a trained flow.

    Examples:
      tarflow sample runs/digits -n 100 --out digits.png
      tarflow sample runs/digits -n 64 --guidance 2 --classes 3 8 --out grid.png
      tarflow sample runs/photos -n 64 --guidance 0.2 --temperature 0.3 --out folder/
      tarflow sample runs/cifar10 -n 50000 --seed 1 --out samples.npz

    A name ending in .png is one sheet; in .npz, arrays `images` (N, H, W, C) uint8 and `labels`; anything else is a
    directory of PNG files. Samples of a model that was trained with Gaussian noise are denoised with its σ.
    """

    run: Annotated[
        tyro.conf.Positional[Path], tyro.conf.arg(help="a run, a directory with a model, or one step-N", metavar="RUN")
    ]
    out: Annotated[Path, tyro.conf.arg(help="sheet.png, samples.npz, or a directory")]
    n: Annotated[int, tyro.conf.arg(aliases=["-n"], help="how many")] = 64
    classes: Annotated[
        tuple[str, ...],
        tyro.conf.arg(help="names or numbers of classes to go through, or `null`; all of them when not given"),
    ] = ()
    guidance: Annotated[float, tyro.conf.arg(help="scale w of the guidance; 0 is none")] = 0.0
    schedule: Annotated[Literal["linear", "constant"], tyro.conf.arg(help="how it grows along the patches")] = "linear"
    temperature: Annotated[float, tyro.conf.arg(help="attention temperature of the unguided branch")] = 1.0
    rule: Annotated[Literal["paper", "stable"], tyro.conf.arg(help="how the branches are combined")] = "paper"
    seed: Annotated[int, tyro.conf.arg(help="image k is the same for the same seed, however many are drawn")] = 0
    denoise: Annotated[bool, tyro.conf.arg(help="clean the samples by one step of the score")] = True
    noise_std: Annotated[
        float | None, tyro.conf.arg(help="σ of the denoising, instead of the one stored with the model")
    ] = None
    solver: Annotated[
        Literal["auto", "sequential", "jacobi"],
        tyro.conf.arg(
            help="one patch a step, or many at a time, iterated until they change no more; auto: the faster one for "
            "each block, measured with the first batch and kept in RUN/solvers.json"
        ),
    ] = "auto"
    window: Annotated[int | None, tyro.conf.arg(help="patches `jacobi` iterates at once; all when not given")] = None
    tol: Annotated[
        float | None, tyro.conf.arg(help="tolerance of `jacobi` and `auto`; 1.2e-4 (in float32) when not given")
    ] = None
    batch_size: Annotated[int | None, tyro.conf.arg(help="images decoded at once")] = None
    columns: Annotated[
        int | None, tyro.conf.arg(help="columns of a sheet; the number of classes where there are any")
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], tyro.conf.arg(help="where to compute")] = "auto"


def options(argv: Sequence[str]) -> type:
    return Sample


def run(args: Sample) -> None:
    import torch

    from tarflow.checkpoint import open_calibration, open_run, save_calibration
    from tarflow.cli.output import SampleWriter
    from tarflow.cli.progress import Progress
    from tarflow.data.images import columns_by_class
    from tarflow.devices import pick_device
    from tarflow.sampling.guidance import Guidance
    from tarflow.sampling.sample import sample_batches

    if args.guidance == 0 and (args.temperature != 1.0 or args.rule != "paper" or args.schedule != "linear"):
        raise ValueError("--guidance: 0 guides nothing; --temperature, --rule and --schedule need a scale above 0")
    guidance = None
    if args.guidance != 0:
        guidance = Guidance(args.guidance, args.schedule, args.temperature, args.rule)
    if args.n < 1:
        raise ValueError(f"-n: expected a positive number, got {args.n}")
    run = open_run(args.run, pick_device(args.device))
    y = None
    if run.config.model.num_classes:
        wanted = [class_number(run, name) for name in args.classes] or list(range(run.config.model.num_classes))
        y = torch.tensor([wanted[k % len(wanted)] for k in range(args.n)])
    elif args.classes:
        raise ValueError(f"--classes: {args.run} is an unconditional model")
    sigma = denoising_sigma(run, args.denoise, args.noise_std)
    calibration = open_calibration(run) if args.solver == "auto" else None
    columns = args.columns or columns_by_class(len(args.classes) or run.config.model.num_classes)
    redraws = 0
    with Progress() as progress:
        batches = sample_batches(
            run.flow,
            args.n,
            y,
            guidance,
            args.seed,
            denoise=sigma,
            solver=args.solver,
            batch_size=args.batch_size,
            window=args.window,
            tol=args.tol,
            calibration=calibration,
            progress=lambda done, total: progress.sampling(args.n * done // total, args.n),
        )
        with SampleWriter(args.out, run, args.n, None if y is None else y.tolist(), columns) as writer:
            for batch in batches:
                writer.add(batch.indices.tolist(), batch.images)
                redraws += int(batch.redraws.sum())
    if calibration is not None:
        save_calibration(run, calibration)
    again = f", {redraws} drawn again because they were not finite" if redraws else ""
    cleaned = f"denoised with σ={sigma}" if sigma is not None else "not denoised"
    print(f"{args.out}: {args.n} samples, {cleaned}{again}", file=sys.stderr)


def class_number(run: Run, name: str) -> int:
    """The label of a class given by name or number; -1 for `null`."""
    from tarflow.model.block import NULL_CLASS

    names = run.class_names
    if name in names:
        return names.index(name)
    if name == "null":
        return NULL_CLASS
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise ValueError(f"class {name!r}: not one of this model's; known: {known}, or null")


def denoising_sigma(run: Run, wanted: bool, given: float | None) -> float | None:
    """The σ to denoise with, or None: what was given, else what is stored; uniform noise asks for no denoising."""
    if not wanted:
        if given is not None:
            raise ValueError("--noise-std: contradicts --no-denoise")
        return None
    if given is not None:
        return given
    if run.config.training is None:
        raise ValueError(
            f"{run.path}: no training section says which noise to remove; give --noise-std or --no-denoise"
        )
    return run.sigma
