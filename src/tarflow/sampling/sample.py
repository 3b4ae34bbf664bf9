"""Drawing images: noise with a seed of its own for each image, the blocks inverted, samples that failed drawn again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.model.condition import Value
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.cuda.graph import Captured
from tarflow.sampling.decode import Report, decode, default_batch_size, draw_noise, latents_of
from tarflow.sampling.denoise import check_sigma
from tarflow.sampling.denoise import denoise as denoise_images
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.solver import Solver, solver_of

MAX_ATTEMPTS = 5  # times one image is drawn; a model that overflows more often than that is the user's to know about

P = ParamSpec("P")
R = TypeVar("R")


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
        log_prob: (b,) log q of the images, nats, where `sample_batches` was asked for it; else None.
    """

    images: Tensor
    indices: Tensor
    redraws: Tensor
    iterations: tuple[int, ...]
    residual: float
    solvers: tuple[str, ...]
    log_prob: Tensor | None = None


def _arguments_of(function: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """A decorator that gives a function the positional arguments of another one, for callers, checkers and `help`."""

    def decorate(decorated: Callable[..., R]) -> Callable[P, R]:
        returned = inspect.signature(decorated).return_annotation
        of_function = inspect.signature(function)
        kept = [p for p in of_function.parameters.values() if p.kind is not p.KEYWORD_ONLY]
        signature = of_function.replace(parameters=kept, return_annotation=returned)
        decorated.__signature__ = signature  # type: ignore[attr-defined]
        return decorated

    return decorate


def sample_batches(
    flow: SequenceFlow,
    n: int,
    y: Value = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    denoise: float | None = None,
    noise: Tensor | None = None,
    solver: Solver | str = "auto",
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    first: int = 0,
    mask: Tensor | None = None,
    *,
    log_prob: bool = False,
) -> Iterator[SampleBatch]:
    """As `sample`, but yields a `SampleBatch` as each batch finishes. Arguments are checked before the first one.

    With `log_prob` it has log q of the images, as `flow.sample_and_log_prob` says; without guidance and denoising,
    under which there is no density.
    """
    batch_size = None if batch_size is None else integer("batch_size", batch_size, 1)
    n, seed, first = integer("n", n, 1), integer("seed", seed), integer("first", first, 0)
    solver = solver_of(solver)
    y, mask = check_arguments(flow, n, y, guidance, denoise, noise), flow.check_mask(mask, n)
    if log_prob and (guidance is not None or denoise is not None):
        raise ValueError("log_prob: expected no guidance and no denoising, under which samples have no known density")
    size = min(n, batch_size or default_batch_size(flow, guidance))
    patches = len(flow.blocks) * flow.sequence.tokens  # of an image, in all blocks

    def report_of(before: int, count: int) -> Report | None:
        """Progress of a batch of `count` images, as that of all n after the `before` that are done."""
        if progress is None:
            return None
        return lambda done: progress(before * patches + count * done, n * patches)

    def batch(start: int, end: int, solvers: Sequence[Solver], captured: Captured) -> SampleBatch:
        """Images start … end-1, those that are not finite drawn again alone."""
        indices = torch.arange(start, end, device="cpu", dtype=torch.int64)
        redraws = torch.zeros_like(indices)
        iterations, residual = [0] * len(solvers), 0.0
        images, densities = None, None
        todo = indices - start  # rows of this batch that are still to be drawn
        for attempt in range(MAX_ATTEMPTS):
            which = indices[todo]
            labels = flow.conditions.rows(y, which)
            there = None if mask is None else mask[which.to(mask.device)]
            chosen = draw_noise(flow, first + which, seed, attempt) if noise is None else noise[which]
            report = report_of(start, len(which)) if attempt == 0 else None
            ladj = []
            decoding = decode(flow, chosen, labels, guidance, solvers, report, captured, log_prob, there)
            for step, solution in enumerate(decoding):
                iterations[step] += solution.iterations
                residual = max(residual, solution.residual)
                ladj.append(solution.ladj)
            drawn = flow.event.from_tokens(solution.x, there)
            if denoise is not None:
                drawn = denoise_images(flow, drawn, denoise, labels, mask=there)
            log_q = log_density(flow, chosen, labels, drawn, ladj, there) if log_prob else None
            if images is None:
                images, densities = drawn, log_q
            else:
                rows = todo.to(drawn.device)
                images[rows] = drawn
                if densities is not None and log_q is not None:
                    densities[rows] = log_q
            todo = todo[~torch.isfinite(drawn).flatten(1).all(dim=1).cpu()]
            if len(todo) == 0:
                names = tuple(map(str, solvers))
                return SampleBatch(images, indices, redraws, tuple(iterations), residual, names, densities)
            if noise is not None:
                raise SamplingError(
                    f"sample {int(indices[todo[0]])} is not finite, and its noise was given by the caller"
                )
            redraws[todo] += 1
        raise SamplingError(
            f"{len(todo)} of {len(indices)} samples were not finite in {MAX_ATTEMPTS} attempts, the first is "
            f"sample {int(indices[todo[0]])}; lower the guidance, use rule 'stable', or bound the log-scale"
        )

    def batches() -> Iterator[SampleBatch]:
        solvers = solver.by_block(flow, guidance, size, n / size)
        captured = Captured()  # on a GPU: what the first batch records serves the others
        for start in range(0, n, size):
            yield batch(start, min(start + size, n), solvers, captured)

    return batches()


@_arguments_of(sample_batches)
def sample(*arguments: Any, **named: Any) -> Tensor:
    """Draw n images.

    Args:
        flow: the model; it is left as it was found.
        n: how many.
        y: (n,) labels; None, or `NULL_CLASS` in a row, is the null class.
        guidance: see `Guidance`; None does not guide.
        seed: image k is drawn from (seed, k, attempt) on the CPU: the noise is bitwise the same at any batch size.
        denoise: σ of the noise in training; one step of Tweedie's formula then cleans the samples. None leaves them.
        noise: (n, T, D), replaces the standard normal noise that would have been drawn. Never redrawn.
        solver: `Sequential()`, one patch a step; `Jacobi(window, tol)`, many patches at a time, iterated until they
            change no more; or `Auto(calibration, tol)`, for each block the one that was faster when the first batch of
            this size was decoded. "sequential", "jacobi" and "auto" are those with their defaults, and any other solver
            of `tarflow.sampling.solver.SOLVERS` goes by its name. They agree within the tolerance; bit for bit the
            same from run to run is the sequential one.
        batch_size: images decoded at once; None takes what keeps the cache under 1 GiB (on a GPU, a quarter of what is
            free, if that is more).
        progress: called as progress(done, total) while decoding; the unit is a patch of a block of an image.
        first: number k of the first image: n images from the middle of a larger set, with the noise they have there.
        mask: (n, T) booleans, of a flow on sequences with a start token: which tokens there are; the others come as 0.

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
    if "log_prob" in named:
        raise TypeError("sample() has no argument 'log_prob'; flow.sample_and_log_prob(n) and sample_batches have")
    return torch.cat([batch.images for batch in sample_batches(*arguments, **named)])


def sample_and_log_prob(
    flow: SequenceFlow,
    n: int,
    c: Any = None,
    seed: int = 0,
    solver: Solver | str = "auto",
    batch_size: int | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `flow.sample_and_log_prob` does: n draws x (n, …) and log q(x|c) (n,), nats."""
    options: dict[str, Any] = {"solver": solver, "batch_size": batch_size, "mask": mask, "log_prob": True}
    batches = list(sample_batches(flow, n, c, None, seed, **options))
    densities = [batch.log_prob for batch in batches if batch.log_prob is not None]
    return torch.cat([batch.images for batch in batches]), torch.cat(densities)


@torch.no_grad()
def log_density(
    flow: SequenceFlow,
    noise: Tensor,
    y: Value,
    x: Tensor,
    ladj: Sequence[Tensor | None],
    mask: Tensor | None = None,
) -> Tensor:
    """log q(x|y) (B,), nats, of x (B, …) that was decoded from standard normal noise (B, T, D) under checked y.

    Where each block's `ladj` (B,) came out of decoding, they are added up. Where one did not, x is encoded: what a
    solver left within its tolerance has other latents than it began with, and their density is that of x.
    """
    known = [each for each in ladj if each is not None]
    if len(known) == len(ladj):
        _, outside = flow.event.to_tokens(x, mask)
        outside = outside.sum(dim=1) if isinstance(outside, Tensor) else outside
        log_q = only(mask, flow.base.log_prob(latents_of(flow, noise))).sum(dim=1) + sum(known) + outside
        if bool(torch.isfinite(log_q).all()):
            return log_q
    return flow.log_prob(x, y, mask=mask)


def check_arguments(
    flow: SequenceFlow, n: int, y: Value, guidance: Guidance | None, denoise: float | None, noise: Tensor | None
) -> Value:
    """Raise ValueError unless what is to be drawn fits the model and each other; return the labels, checked."""
    integer("n", n, 1)
    if denoise is not None:
        check_sigma(denoise)
    y = flow.check_condition(y, n)
    if guidance is not None:
        if not isinstance(guidance, Guidance):
            raise ValueError(f"guidance: expected tarflow.Guidance(scale=…) or None, got {guidance!r}")
        guidance.check(y, flow.conditions, flow.sequence.slots)
    if noise is not None:
        flow.check_latents(noise, "noise")
        if len(noise) != n:
            raise ValueError(f"noise: expected {n} rows, one a sample, got {len(noise)}")
        if not bool(torch.isfinite(noise).all()):
            raise ValueError("noise: expected finite values")
    return y


def check_finite(images: Tensor, what: str, advice: str) -> Tensor:
    """The images (B, C, H, W), or a SamplingError where one of them is not finite. `what` has its number for {}."""
    finite = torch.isfinite(images).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise SamplingError(f"{what.format(int((~finite).nonzero()[0]))} is not finite; {advice}")
    return images
