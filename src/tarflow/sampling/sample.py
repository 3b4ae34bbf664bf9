"""Drawing images: noise with a seed of its own for each image, the blocks inverted, samples that failed drawn again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tarflow.model.block import Block
from tarflow.model.flow import TarFlow
from tarflow.sampling.denoise import check_sigma
from tarflow.sampling.denoise import denoise as denoise_images
from tarflow.sampling.guidance import Guidance, Predict, guided_rows, predictor
from tarflow.sampling.jacobi import jacobi
from tarflow.sampling.sequential import Solution, sequential
from tarflow.seeding import seeded_normal

Solver = Literal["auto", "sequential", "jacobi"]
Solve = Callable[[Predict, Tensor], Solution]
"""solve(predict, z): a solver, its options decided; z and the solution in the block's own order."""

MAX_ATTEMPTS = 5  # times one image is drawn; a model that overflows more often than that is the user's to know about
TOLERANCE = 1e-4  # of the parallel solver: a fortieth of the step between two of 256 levels
CACHE_BYTES = 1 << 30  # keys and values held at once where the batch size is ours to choose


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
    """

    images: Tensor
    indices: Tensor
    redraws: Tensor
    iterations: tuple[int, ...]
    residual: float


def sample(
    flow: TarFlow,
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
            (see `tarflow.sampling.jacobi`); or "auto", which today is "sequential".
        batch_size: images decoded at once; None takes what keeps the cache under 1 GiB.
        window: patches that "jacobi" iterates at once; None takes all that are left.
        tol: tolerance of "jacobi", relative to max(1, |x|) in every block; None is 1e-4.

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
    batches = list(sample_batches(flow, n, y, guidance, seed, denoise, noise, solver, batch_size, window, tol))
    return torch.cat([batch.images for batch in batches])


def sample_batches(
    flow: TarFlow,
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
) -> Iterator[SampleBatch]:
    """As `sample`, but yields a `SampleBatch` as each batch finishes. Arguments are checked before the first one."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    if solver not in get_args(Solver):
        raise ValueError(f"solver: expected one of {', '.join(map(repr, get_args(Solver)))}, got {solver!r}")
    if solver != "jacobi" and not (window is None and tol is None):
        option = "tol" if window is None else "window"
        raise ValueError(f"{option}: only solver 'jacobi' has one, got solver {solver!r}")
    y = check_arguments(flow, n, y, guidance, denoise, noise)
    batch_size = min(n, batch_size or default_batch_size(flow, guidance))

    def solve(predict: Predict, z: Tensor) -> Solution:
        if solver == "jacobi":
            return jacobi(predict, z, window=window, tol=TOLERANCE if tol is None else tol)
        return sequential(predict, z)

    return _batches(flow, n, y, guidance, seed, denoise, noise, batch_size, solve)


def check_arguments(
    flow: TarFlow, n: int, y: Tensor | None, guidance: Guidance | None, denoise: float | None, noise: Tensor | None
) -> Tensor | None:
    """Raise ValueError unless what is to be drawn fits the model and each other; return the labels, checked."""
    if n < 1:
        raise ValueError(f"n: expected a positive number of samples, got {n}")
    if denoise is not None:
        check_sigma(denoise)
    y = flow.check_labels(y, n)
    if guidance is not None:
        guidance.check(y, flow.config)
    if noise is not None:
        flow.check_latents(noise, "noise")
        if len(noise) != n:
            raise ValueError(f"noise: expected {n} rows, one a sample, got {len(noise)}")
        if not bool(torch.isfinite(noise).all()):
            raise ValueError("noise: expected finite values")
    return y


def _batches(
    flow: TarFlow,
    n: int,
    y: Tensor | None,
    guidance: Guidance | None,
    seed: int,
    denoise: float | None,
    noise: Tensor | None,
    batch_size: int,
    solve: Solve,
) -> Iterator[SampleBatch]:
    for first in range(0, n, batch_size):
        indices = torch.arange(first, min(first + batch_size, n))
        redraws = torch.zeros_like(indices)
        iterations, residual = [0] * len(flow.blocks), 0.0
        images = None
        todo = torch.arange(len(indices))  # rows of this batch that are still to be drawn
        for attempt in range(MAX_ATTEMPTS):
            which = indices[todo]
            z = draw_noise(flow, which, seed, attempt) if noise is None else noise[which.to(noise.device)]
            labels = None if y is None else y[which.to(y.device)]
            for step, solution in enumerate(decode(flow, z, labels, guidance, solve)):
                iterations[step] += solution.iterations
                residual = max(residual, solution.residual)
            drawn = flow.to_images(solution.x)
            if denoise is not None:
                drawn = denoise_images(flow, drawn, denoise, labels)
            if images is None:
                images = drawn
            else:
                images[todo.to(drawn.device)] = drawn
            todo = todo[~torch.isfinite(drawn).flatten(1).all(dim=1).cpu()]
            if len(todo) == 0:
                break
            if noise is not None:
                raise SamplingError(
                    f"sample {int(indices[todo[0]])} is not finite, and its noise was given by the caller"
                )
            redraws[todo] += 1
        else:
            raise SamplingError(
                f"{len(todo)} of {len(indices)} samples were not finite in {MAX_ATTEMPTS} attempts, the first is "
                f"sample {int(indices[todo[0]])}; lower the guidance, use rule 'stable', or bound the log-scale"
            )
        assert images is not None
        yield SampleBatch(images, indices, redraws, tuple(iterations), residual)


def decode(
    flow: TarFlow,
    noise: Tensor,
    y: Tensor | None = None,
    guidance: Guidance | None = None,
    solve: Solve = sequential,
) -> Iterator[Solution]:
    """Invert the flow: from standard normal noise (B, T, D) and checked labels (B,), what each block leaves.

    The patches (B, T, D) of the last one, in raster order, are those of the images, not denoised.
    """
    x = latents_of(flow, noise)
    for block in reversed(flow.blocks):
        solution = invert(block, x, y, guidance, solve)
        x = solution.x
        yield solution


def latents_of(flow: TarFlow, noise: Tensor) -> Tensor:
    """Standard normal noise (B, T, D) to latents of the flow, N(0, V): on its device, in the dtype of its state."""
    return noise.to(device=flow.device, dtype=torch.promote_types(flow.dtype, torch.float32)) * flow.base_std()


@torch.no_grad()
def invert(
    block: Block,
    z: Tensor,
    y: Tensor | None = None,
    guidance: Guidance | None = None,
    solve: Solve = sequential,
) -> Solution:
    """Decode one block: z (B, T, D) in raster order and checked labels (B,) to x (B, T, D) in raster order.

    Its cache is gone when it returns, also when a step fails: there is never more than one block's.
    """
    predict = predictor(block, y, guidance, block.new_cache(guided_rows(guidance, len(z))))
    solution = solve(predict, block.reorder(z))
    return dataclasses.replace(solution, x=block.reorder(solution.x))


def draw_noise(flow: TarFlow, indices: Tensor, seed: int, attempt: int = 0) -> Tensor:
    """Standard normal noise (b, T, D), float64 on the CPU; that of image k depends on (seed, k, attempt) only."""
    shape = (flow.config.num_patches, flow.config.patch_dim)
    return torch.stack([seeded_normal(shape, seed, "sample", int(k), attempt) for k in indices])


def default_batch_size(flow: TarFlow, guidance: Guidance | None) -> int:
    """How many images fit into `CACHE_BYTES` of keys and values, at least 1."""
    config = flow.config
    per_image = 2 * max(config.layers) * config.num_patches * config.width * flow.dtype.itemsize
    return max(1, CACHE_BYTES // (per_image * guided_rows(guidance, 1)))
