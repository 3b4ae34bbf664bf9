"""The options of every command that draws samples or judges them, and what they mean for one run."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from tarflow.cli.arguments import Flag
from tarflow.evaluation.quality.extractors import EXTRACTORS
from tarflow.sampling.solver import SOLVERS

if TYPE_CHECKING:
    from tarflow.checkpoint import Run
    from tarflow.cli.progress import Progress
    from tarflow.data.load import Splits
    from tarflow.drawing import Sampler
    from tarflow.evaluation.quality.judge import Judge
    from tarflow.sampling.setting import Setting


@dataclasses.dataclass
class Solving:
    """Options of the solver, which change the time that samples take, and but for `dtype` nothing else."""

    solver: Annotated[
        str,
        arg(
            metavar=f"{{{','.join(SOLVERS)}}}",
            help="one patch a step, or many at a time, iterated until they change no more; auto: the faster one for "
            "each block, measured with the first batch and kept in RUN/solvers.json",
        ),
    ] = "auto"
    window: Annotated[int | None, arg(help="patches `jacobi` iterates at once; all when not given")] = None
    tol: Annotated[float | None, arg(help="tolerance of `jacobi` and `auto`; 1.2e-4 (in float32) when not given")] = (
        None
    )
    batch_size: Annotated[int | None, arg(help="images decoded at once")] = None
    dtype: Annotated[
        Literal["float32", "bf16"],
        arg(help="of the network; bf16 is much faster on a GPU, and changes the samples (docs/speed.md says how much)"),
    ] = "float32"

    def sampler(self, run: Run) -> Sampler:
        """What draws from a run by these options."""
        from tarflow.drawing import Sampler

        narrow = self.dtype == "bf16"
        return Sampler(run, self.solver, self.batch_size, window=self.window, tol=self.tol, narrow=narrow)


@dataclasses.dataclass
class Drawing:
    """Options of guidance and denoising. What is not given is the default that `tarflow sweep` left, if any."""

    guidance: Annotated[
        float | None,
        arg(help="scale w of the guidance; 0 is none. Not given: what `tarflow sweep` found best, else none"),
    ] = None
    schedule: Annotated[
        Literal["linear", "constant"] | None, arg(help="how it grows along the patches; linear when not given")
    ] = None
    temperature: Annotated[float | None, arg(help="attention temperature of the unguided branch; 1 when not given")] = (
        None
    )
    rule: Annotated[
        Literal["paper", "stable"] | None, arg(help="how the branches are combined; paper when not given")
    ] = None
    denoise: Annotated[bool, arg(help="clean samples by one step of the score, or leave them noisy")] = True
    noise_std: Annotated[float | None, arg(help="σ of the denoising, instead of the one stored with the model")] = None
    no_defaults: Annotated[
        Flag, arg(help="leave out what `tarflow sweep` found best (RUN/sampling.json) where nothing is given")
    ] = False


def setting_of(args: Drawing, run: Run) -> Setting:
    """How samples of this run are drawn; a line on stderr says where a stored default is used, or is too old to be.

    Any option of the guidance replaces all of the stored guidance; `--no-denoise` and `--noise-std` replace the stored
    denoising.
    """
    from tarflow.checkpoint import weights_digest
    from tarflow.kept import SETTING_FILE, kept_file, open_setting
    from tarflow.sampling.guidance import Guidance
    from tarflow.sampling.setting import Setting

    given = (args.guidance, args.schedule, args.temperature, args.rule)
    if not args.guidance and any(value is not None for value in given[1:]):
        raise ValueError("--guidance: 0 guides nothing; --temperature, --rule and --schedule need a scale above 0")
    stored, file = None if args.no_defaults else open_setting(run), kept_file(run, SETTING_FILE)
    if stored is not None and stored.weights != weights_digest(run.path):
        print(f"{file}: not used, found for other weights; `tarflow sweep` again", file=sys.stderr)
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
        print(f"{file}: {stored}; --no-defaults leaves it out", file=sys.stderr)
    elif stored is not None and ((args.noise_std is None and args.denoise) or all(value is None for value in given)):
        print(f"{file}: a part of it is used: {setting}", file=sys.stderr)
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


@dataclasses.dataclass
class Judging:
    """What samples are compared with, and on which features."""

    extractor: Annotated[
        Literal[tuple(EXTRACTORS)],  # type: ignore[valid-type]
        arg(
            help="of features: efficientnet (EfficientNet-Lite0, from the extra `metrics`), inception (FID's, from a "
            "file given by --weights), or classifier (a small network trained on the spot, of labelled images)"
        ),
    ] = "efficientnet"
    weights: Annotated[Path | None, arg(help="file with the weights of FID's Inception, .pth or .safetensors")] = None
    data: Annotated[
        str | None, arg(help="where the images of the run's training are now; where they were then when not given")
    ] = None
    reference: Annotated[
        int, arg(help="training images that samples are compared with at most; of more, a fixed choice")
    ] = 50_000
    cache: Annotated[
        Path | None,
        arg(help="directory for the features of real images; $TARFLOW_CACHE or ~/.cache/tarflow when not given"),
    ] = None


def check_samples(n: int) -> None:
    """Raise ValueError for fewer samples than can be measured, before anything is opened."""
    from tarflow.evaluation.quality.judge import LEAST_IMAGES

    if n < LEAST_IMAGES:
        raise ValueError(f"-n: expected at least {LEAST_IMAGES} samples to measure, got {n}")


def opened_judge(run: Run, judging: Judging, progress: Progress) -> tuple[Judge, Splits]:
    """The judge of this run's samples, its real images prepared, and the images."""
    from tarflow.evaluation.quality.judge import LEAST_IMAGES, open_judge

    if judging.reference < LEAST_IMAGES:
        raise ValueError(f"--reference: expected at least {LEAST_IMAGES}, got {judging.reference}")
    return open_judge(
        run,
        judging.extractor,
        weights=judging.weights,
        source=judging.data,
        limit=judging.reference,
        cache=judging.cache,
        loading=progress.loading,
        progress=partial(progress.preparing, "features of real images"),
    )
