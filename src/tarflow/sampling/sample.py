"""Drawing images: noise with a seed of its own for each image, the blocks inverted, samples that failed drawn again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.calibrate import calibrated_decode, is_measured
from tarflow.sampling.choices import Calibration, Choice, calibration_key, remembered
from tarflow.sampling.cuda.graph import Captured
from tarflow.sampling.decode import decode, default_batch_size, draw_noise
from tarflow.sampling.denoise import check_sigma
from tarflow.sampling.denoise import denoise as denoise_images
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.jacobi import check_options
from tarflow.sampling.sequential import Solution

Solver = Literal["auto", "sequential", "jacobi"]

MAX_ATTEMPTS = 5  # times one image is drawn; a model that overflows more often than that is the user's to know about


class SamplingError(RuntimeError):
    """Samples that are not finite, after every attempt that was allowed."""


@dataclass(frozen=True)
class SampleBatch:
    """Images as they finish, and what it took.

    Attributes:
        images: (b, C, H, W), not clipped.
        indices: (b,) int64 on the CPU, which of the n samples these are.
        redraws: (b,) int64 on the CPU, how often each was drawn again because it was not finite.
        iterations: evaluations of the conditioner for each block, in the order of sampling, redraws included.
        residual: largest change, relative to max(1, |x|), that one more evaluation would have made to a patch of any
            block; 0 for the sequential solver, which is exact by construction.
        solvers: what decoded each block, in the order of sampling: "sequential", or "jacobi" with its window, such as
            "jacobi 16".
    """

    images: Tensor
    indices: Tensor
    redraws: Tensor
    iterations: tuple[int, ...]
    residual: float
    solvers: tuple[str, ...]


def sample(
    flow: SequenceFlow,
    n: int,
    y: Tensor | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    denoise: float | None = None,
    noise: Tensor | None = None,
    solver: Solver = "auto",
    batch_size: int | None = None,
    window: int | None = None,
    tol: float | None = None,
    calibration: Calibration | None = None,
    progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> Tensor:
    """Draw n images.

    Args:
        flow: the model; it is left as it was found.
        n: how many.
        y: (n,) labels; None, or `NULL_CLASS` in a row, is the null class.
        guidance: see `Guidance`; None does not guide.
        seed: image k is drawn from (seed, k, attempt) on the CPU: the noise is bitwise the same at any batch size.
        denoise: σ of the noise in training; one step of Tweedie's formula then cleans the samples. None leaves them.
        noise: (n, T, D), replaces the standard normal noise that would have been drawn. Never redrawn.
        solver: "sequential", one patch a step; "jacobi", many patches at a time, iterated until they change no more
            (see `tarflow.sampling.jacobi`); or "auto", for each block the one that was faster when the first batch of
            this size was decoded (see `tarflow.sampling.calibrate`). They agree within `tol`; bit for bit the same
            from run to run is "sequential".
        batch_size: images decoded at once; None takes what keeps the cache under 1 GiB (on a GPU, a quarter of what is
            free, if that is more).
        window: patches that "jacobi" iterates at once; None takes all that are left.
        tol: tolerance of "jacobi", also within "auto", relative to max(1, |x|) in every block; None is 1000 times the
            spacing of numbers at 1, 1.2e-4 in float32, and where the network computes in bf16 twice, 0.016.
        calibration: what "auto" has measured before, and where it puts what it measures; None remembers it for this
            flow, its present weights and this process.
        progress: called as progress(done, total) while decoding; the unit is a patch of a block of an image.
        first: number k of the first image: n images from the middle of a larger set, with the noise they have there.

    Returns:
        (n, C, H, W) on the model's device, not clipped to -1 … 1.

    Raises:
        ValueError: arguments that do not fit the model or each other.
        SamplingError: an image was not finite, `MAX_ATTEMPTS` times, or came from noise that the caller supplied.

    >>> import torch, tarflow
    >>> config = tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1), num_classes=2)
    >>> flow = tarflow.TarFlow(config)
    >>> tarflow.sample(flow, 3, y=torch.tensor([0, 1, 1]), guidance=tarflow.Guidance(scale=1.0)).shape
    torch.Size([3, 1, 8, 8])
    """
    batches = sample_batches(
        flow, n, y, guidance, seed, denoise, noise, solver, batch_size, window, tol, calibration, progress, first
    )
    return torch.cat([batch.images for batch in batches])


def sample_batches(
    flow: SequenceFlow,
    n: int,
    y: Tensor | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    denoise: float | None = None,
    noise: Tensor | None = None,
    solver: Solver = "auto",
    batch_size: int | None = None,
    window: int | None = None,
    tol: float | None = None,
    calibration: Calibration | None = None,
    progress: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> Iterator[SampleBatch]:
    """As `sample`, but yields a `SampleBatch` as each batch finishes. Arguments are checked before the first one."""
    batch_size = None if batch_size is None else integer("batch_size", batch_size, 1)
    if solver not in get_args(Solver):
        raise ValueError(f"solver: expected one of {', '.join(map(repr, get_args(Solver)))}, got {solver!r}")
    n, seed, first = integer("n", n, 1), integer("seed", seed), integer("first", first, 0)
    if window is not None and solver != "jacobi":
        raise ValueError(f"window: only solver 'jacobi' has one to choose, got solver {solver!r}")
    if tol is not None and solver == "sequential":
        raise ValueError("tol: solver 'sequential' is exact and has none")
    if calibration is not None and solver != "auto":
        raise ValueError(f"calibration: only solver 'auto' has one, got solver {solver!r}")
    check_options(window, tol)
    y = check_arguments(flow, n, y, guidance, denoise, noise)
    batch_size = min(n, batch_size or default_batch_size(flow, guidance))
    solvers: list[Choice] | None = None
    if solver != "auto":
        solvers = [Choice(solver, window)] * len(flow.blocks)
    draw = _Draw(flow, n, y, guidance, seed, denoise, noise, tol, progress, solvers, calibration, first)
    return (draw.batch(start, min(start + batch_size, n)) for start in range(0, n, batch_size))


def check_arguments(
    flow: SequenceFlow, n: int, y: Tensor | None, guidance: Guidance | None, denoise: float | None, noise: Tensor | None
) -> Tensor | None:
    """Raise ValueError unless what is to be drawn fits the model and each other; return the labels, checked."""
    integer("n", n, 1)
    if denoise is not None:
        check_sigma(denoise)
    y = flow.check_condition(y, n)
    if guidance is not None:
        if not isinstance(guidance, Guidance):
            raise ValueError(f"guidance: expected tarflow.Guidance(scale=…) or None, got {guidance!r}")
        guidance.check(y, flow.condition, flow.sequence.tokens)
    if noise is not None:
        flow.check_latents(noise, "noise")
        if len(noise) != n:
            raise ValueError(f"noise: expected {n} rows, one a sample, got {len(noise)}")
        if not bool(torch.isfinite(noise).all()):
            raise ValueError("noise: expected finite values")
    return y


@dataclass
class _Draw:
    """The n images of one call, batch by batch. All but `choices` is as the caller gave it, checked."""

    flow: SequenceFlow
    n: int
    y: Tensor | None
    guidance: Guidance | None
    seed: int
    denoise: float | None
    noise: Tensor | None
    tol: float | None
    progress: Callable[[int, int], None] | None
    choices: list[Choice] | None  # of the blocks, in the order of sampling; None is still to be measured
    calibration: Calibration | None
    first: int  # number of the first of them, by which its noise is drawn
    captured: Captured = field(default_factory=Captured)  # on a GPU: what the first batch records serves the others

    def batch(self, first: int, end: int) -> SampleBatch:
        """Images first … end-1, those that are not finite drawn again alone."""
        indices = torch.arange(first, end, device="cpu", dtype=torch.int64)
        redraws = torch.zeros_like(indices)
        iterations, residual = [0] * len(self.flow.blocks), 0.0
        images = None
        todo = indices - first  # rows of this batch that are still to be drawn
        for attempt in range(MAX_ATTEMPTS):
            which = indices[todo]
            labels = None if self.y is None else self.y[which.to(self.y.device)]
            for step, solution in enumerate(self._decode(which, labels, attempt)):
                iterations[step] += solution.iterations
                residual = max(residual, solution.residual)
            drawn = self.flow.event.from_tokens(solution.x)
            if self.denoise is not None:
                drawn = denoise_images(self.flow, drawn, self.denoise, labels)
            if images is None:
                images = drawn
            else:
                images[todo.to(drawn.device)] = drawn
            todo = todo[~torch.isfinite(drawn).flatten(1).all(dim=1).cpu()]
            if len(todo) == 0:
                break
            if self.noise is not None:
                raise SamplingError(
                    f"sample {int(indices[todo[0]])} is not finite, and its noise was given by the caller"
                )
            redraws[todo] += 1
        else:
            raise SamplingError(
                f"{len(todo)} of {len(indices)} samples were not finite in {MAX_ATTEMPTS} attempts, the first is "
                f"sample {int(indices[todo[0]])}; lower the guidance, use rule 'stable', or bound the log-scale"
            )
        assert images is not None and self.choices is not None
        return SampleBatch(
            images, indices, redraws, tuple(iterations), residual, tuple(str(choice) for choice in self.choices)
        )

    def _decode(self, which: Tensor, labels: Tensor | None, attempt: int) -> Iterator[Solution]:
        """The images `which` through the blocks, by the solvers chosen, which are measured on the first batch."""
        flow, guidance, tol = self.flow, self.guidance, self.tol
        noise = draw_noise(flow, self.first + which, self.seed, attempt) if self.noise is None else self.noise[which]
        progress = self._progress(which, attempt)
        if self.choices is None:
            known = remembered(flow) if self.calibration is None else self.calibration
            key = calibration_key(flow, len(which), guidance, tol)
            batches = (self.n - int(which[0])) / len(which)
            if not is_measured(known.choices.get(key, ()), flow, batches):
                measured: list[Choice] = []
                yield from calibrated_decode(
                    flow, noise, labels, guidance, tol, measured, progress, self.captured, batches
                )
                known.choices[key] = tuple(measured)
                self.choices = measured
                return
            self.choices = list(known.choices[key])
        solvers = [choice.solve(tol) for choice in self.choices]
        yield from decode(flow, noise, labels, guidance, solvers, progress, self.captured)

    def _progress(self, which: Tensor, attempt: int) -> Callable[[int, int], None] | None:
        """What the blocks of a first attempt report, in patches of all n images."""
        if self.progress is None or attempt > 0:
            return None
        before, blocks, report = 0, len(self.flow.blocks), self.progress
        first, length = int(which[0]), self.flow.sequence.tokens

        def told(done: int, total: int) -> None:
            nonlocal before
            report(first * blocks * length + len(which) * (before + done), self.n * blocks * length)
            before += total if done == total else 0

        return told
