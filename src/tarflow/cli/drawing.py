"""The options of every command that draws samples, and what they mean for one run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from tarflow.checkpoint import Run
    from tarflow.sampling.sample import SampleBatch
    from tarflow.sampling.setting import Setting


@dataclasses.dataclass
class Solving:
    """Options of the solver, which change the time that samples take, and but for `dtype` nothing else."""

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
    dtype: Annotated[
        Literal["float32", "bf16"],
        tyro.conf.arg(
            help="of the network; bf16 is much faster on a GPU, and changes the samples (docs/speed.md says how much)"
        ),
    ] = "float32"


@dataclasses.dataclass
class Drawing:
    """Options of guidance and denoising. What is not given is the default that `tarflow sweep` left, if any."""

    guidance: Annotated[
        float | None,
        tyro.conf.arg(help="scale w of the guidance; 0 is none. Not given: what `tarflow sweep` found best, else none"),
    ] = None
    schedule: Annotated[
        Literal["linear", "constant"] | None,
        tyro.conf.arg(help="how it grows along the patches; linear when not given"),
    ] = None
    temperature: Annotated[
        float | None, tyro.conf.arg(help="attention temperature of the unguided branch; 1 when not given")
    ] = None
    rule: Annotated[
        Literal["paper", "stable"] | None, tyro.conf.arg(help="how the branches are combined; paper when not given")
    ] = None
    denoise: Annotated[bool, tyro.conf.arg(help="clean samples by one step of the score, or leave them noisy")] = True
    noise_std: Annotated[
        float | None, tyro.conf.arg(help="σ of the denoising, instead of the one stored with the model")
    ] = None
    no_defaults: Annotated[
        tyro.conf.FlagCreatePairsOff[bool],
        tyro.conf.arg(help="leave out what `tarflow sweep` found best (RUN/sampling.json) where nothing is given"),
    ] = False


def setting_of(args: Drawing, run: Run) -> Setting:
    """How samples of this run are drawn; a line on stderr says where a stored default is used, or is too old to be.

    Any option of the guidance replaces all of the stored guidance; `--no-denoise` and `--noise-std` replace the stored
    denoising.
    """
    from tarflow.checkpoint import open_setting, weights_digest
    from tarflow.sampling.guidance import Guidance
    from tarflow.sampling.setting import Setting

    given = (args.guidance, args.schedule, args.temperature, args.rule)
    if not args.guidance and any(value is not None for value in given[1:]):
        raise ValueError("--guidance: 0 guides nothing; --temperature, --rule and --schedule need a scale above 0")
    stored = None if args.no_defaults else open_setting(run)
    if stored is not None and stored.weights != weights_digest(run.path):
        print(f"{run.path}/sampling.json: not used, found for other weights; `tarflow sweep` again", file=sys.stderr)
        stored = None
    if args.noise_std is not None or not args.denoise or stored is None:
        sigma = denoising_sigma(run, args.denoise, args.noise_std)
    else:
        sigma = stored.setting.denoise
    if stored is not None and all(value is None for value in given):
        setting = dataclasses.replace(stored.setting, denoise=sigma)
    else:
        temperature = 1.0 if args.temperature is None else args.temperature
        schedule, rule = args.schedule or "linear", args.rule or "paper"
        setting = Setting(Guidance(args.guidance or 0.0, schedule, temperature, rule), sigma)
    if stored is not None and setting == stored.setting:
        print(f"{run.path}/sampling.json: {stored}; --no-defaults leaves it out", file=sys.stderr)
    elif stored is not None and ((args.noise_std is None and args.denoise) or all(value is None for value in given)):
        print(f"{run.path}/sampling.json: a part of it is used: {setting}", file=sys.stderr)
    return setting


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


def labels_of(run: Run, names: tuple[str, ...], n: int) -> Tensor | None:
    """The labels of n samples that go through the named classes, or through all; None for an unconditional model."""
    import torch

    if not run.config.model.num_classes:
        if names:
            raise ValueError(f"--classes: {run.path} is an unconditional model")
        return None
    wanted = [class_number(run, name) for name in names] or list(range(run.config.model.num_classes))
    return torch.tensor([wanted[k % len(wanted)] for k in range(n)], device="cpu", dtype=torch.int64)


def class_number(run: Run, name: str) -> int:
    """The label of a class given by name or number; -1 for `null`."""
    from tarflow.data.labels import class_finder
    from tarflow.model.condition import NULL_CLASS

    names = run.class_names
    if (number := class_finder(names)(name)) is not None:
        return number
    if name == "null":
        return NULL_CLASS
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    known = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    raise ValueError(f"class {name!r}: not one of this model's; known: {known}, or null")


class Sampler:
    """Draws from one run by the options of a command, and keeps what "auto" measures on the way.

    Attributes:
        redraws: samples so far that were drawn again because they were not finite.
        clipped_pixels, clipped_images: of what `pixels` made of them last, the share of numbers that no pixel can be,
            and that were clipped, and of the images that hold one.
    """

    def __init__(self, run: Run, solving: Solving) -> None:
        from tarflow.checkpoint import open_calibration
        from tarflow.sampling.narrow import narrowed
        from tarflow.sampling.solver import solver_of

        self.run, self.solving, self.redraws = run, solving, 0
        self.flow = narrowed(run.flow) if solving.dtype == "bf16" else run.flow
        self.calibration = open_calibration(run) if solving.solver == "auto" else None
        self.solver = solver_of(solving.solver, window=solving.window, tol=solving.tol, calibration=self.calibration)
        self.clipped_pixels = self.clipped_images = 0.0

    def batches(
        self, n: int, y: Tensor | None, setting: Setting, seed: int, progress: Callable[[float, int], None]
    ) -> Iterator[SampleBatch]:
        """The batches of n samples as they finish; arguments are checked at once. `progress` counts images."""
        from tarflow.sampling.sample import sample_batches

        batches = sample_batches(
            self.flow,
            n,
            y,
            setting.guidance,
            seed,
            denoise=setting.denoise,
            solver=self.solver,
            batch_size=self.solving.batch_size,
            progress=lambda done, total: progress(n * done / total, n),
        )
        return self._counted(batches)

    def pixels(
        self, n: int, y: Tensor | None, setting: Setting, seed: int, progress: Callable[[float, int], None]
    ) -> Tensor:
        """n samples as they would be written: (n, C, H, W) uint8 at the levels of the data, on the CPU, clipped."""
        import torch

        pixels, beyond = [], []
        for batch in self.batches(n, y, setting, seed, progress):
            x = batch.images.cpu()
            pixels.append(self.run.measure.pixels(x))
            beyond.append(self.run.measure.clipped(x).flatten(1).double().mean(dim=1))
        self.keep_calibration()
        shares = torch.cat(beyond)
        self.clipped_pixels, self.clipped_images = float(shares.mean()), float((shares > 0).double().mean())
        return torch.cat(pixels)

    def keep_calibration(self) -> None:
        """Write what "auto" has measured to RUN/solvers.json, once the samples are safe."""
        from tarflow.checkpoint import save_calibration

        if self.calibration is not None:
            save_calibration(self.run, self.calibration)

    def _counted(self, batches: Iterator[SampleBatch]) -> Iterator[SampleBatch]:
        for batch in batches:
            self.redraws += int(batch.redraws.sum())
            yield batch
