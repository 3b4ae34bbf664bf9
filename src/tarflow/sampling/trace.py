"""One sample on its way through the blocks, from noise to image."""

from __future__ import annotations

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.decode import decode, draw_noise, latents_of
from tarflow.sampling.denoise import denoise as denoise_images
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.sample import SamplingError, check_arguments


def trace(
    flow: SequenceFlow,
    n: int = 1,
    y: Tensor | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    denoise: float | None = None,
    noise: Tensor | None = None,
) -> list[Tensor]:
    """Draw n images and keep what each block leaves.

        x_K = z ~ N(0, V),    x_{k-1} = block_k⁻¹(x_k),    image = x_0

    A block returns its sequence in raster order, so every stage can be looked at as an image of the same size. The
    arguments are those of `tarflow.sample`, and so is the last stage, with the sequential solver; all n go together.

    Returns:
        K+1 tensors (n, C, H, W) for K blocks, not clipped: the noise, then the stage after each block, the image last.
        With `denoise` one more, the cleaned image.

    Raises:
        ValueError: arguments that do not fit the model or each other.
        SamplingError: an image is not finite. Nothing is drawn again here.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1, 1)))
    >>> stages = tarflow.trace(flow, 2, seed=5)
    >>> len(stages), stages[0].shape
    (4, torch.Size([2, 1, 8, 8]))
    >>> torch.equal(stages[-1], tarflow.sample(flow, 2, seed=5, solver="sequential"))
    True
    """
    integer("seed", seed)
    y = check_arguments(flow, n, y, guidance, denoise, noise)
    noise = draw_noise(flow, torch.arange(n, device="cpu", dtype=torch.int64), seed) if noise is None else noise
    stages = [flow.event.from_tokens(latents_of(flow, noise))]
    stages += [flow.event.from_tokens(solution.x) for solution in decode(flow, noise, y, guidance)]
    if denoise is not None:
        stages.append(denoise_images(flow, stages[-1], denoise, y))
    finite = torch.isfinite(stages[-1]).flatten(1).all(dim=1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        raise SamplingError(
            f"sample {first} is not finite; take another seed, lower the guidance, or use rule 'stable'"
        )
    return stages
