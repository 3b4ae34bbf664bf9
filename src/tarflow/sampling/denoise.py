"""One step of Tweedie's formula: what the model of noisy images expects the clean image to be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tarflow.model.flow import TarFlow


def denoise(
    flow: TarFlow, x: Tensor, sigma: float, y: Tensor | None = None, *, batch_size: int | None = None
) -> Tensor:
    """Denoise images by the score of the model that was trained on noisy ones.

        E[clean | x, y] = x + σ² ∇_x log p(x|y)

    exact where p is the density of clean images plus N(0, σ²) noise (Tweedie's formula; TarFlow, arXiv 2412.06329,
    section 3.4). The score is that of the summed log-density, in float32 at least, whatever autocast is on.

    Args:
        x: (B, C, H, W), noisy images. Not written to.
        sigma: σ > 0, the standard deviation of the noise in training, in the units of x.
        y: (B,) labels, None for the null class.
        batch_size: images differentiated at once, which bounds the memory; None takes them all, 64 at a time.

    Returns:
        (B, C, H, W), detached, float32 at least.

    Raises:
        ValueError: images, labels or sigma do not fit.
    """
    check_sigma(sigma)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: expected a positive number, got {batch_size}")
    flow.check_images(x)
    y = flow.check_labels(y, len(x))
    chunks = []
    for start in range(0, len(x), batch_size or 64):
        rows = slice(start, start + (batch_size or 64))
        chunks.append(_denoise_chunk(flow, x[rows], sigma, None if y is None else y[rows]))
    return torch.cat(chunks) if chunks else x.clone()


def check_sigma(sigma: float) -> None:
    """Raise ValueError unless σ is a positive number."""
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma: expected a positive number, got {sigma}")


def _denoise_chunk(flow: TarFlow, x: Tensor, sigma: float, y: Tensor | None) -> Tensor:
    with (
        torch.inference_mode(False),  # the caller may be in it, and nothing can be differentiated there
        torch.enable_grad(),
        torch.autocast(x.device.type, enabled=False),
    ):
        # A copy in the dtype of the state: the gradient of a narrower x would be rounded to that.
        dtype = torch.promote_types(torch.promote_types(x.dtype, flow.dtype), torch.float32)
        x = x.detach().to(dtype, copy=True).requires_grad_()
        # Only x asks for a gradient: the weights' graph is neither built further back nor accumulated into .grad.
        (score,) = torch.autograd.grad(flow.log_prob(x, y).sum(), [x])
        return (x + sigma**2 * score).detach()
