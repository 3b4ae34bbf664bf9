"""Images to sequences of patches and back."""

from __future__ import annotations

from torch import Tensor


def patchify(x: Tensor, patch_size: int) -> Tensor:
    """Cut images (B, C, H, W) into raster-ordered patches (B, T, D), T = HW/P², D = CP².

    Within a patch the order is channel, row, column.

    >>> import torch
    >>> patchify(torch.arange(16.0).view(1, 1, 4, 4), 2)[0, 1]
    tensor([2., 3., 6., 7.])
    """
    batch, channels, height, width = x.shape
    p = patch_size
    x = x.reshape(batch, channels, height // p, p, width // p, p)
    x = x.permute(0, 2, 4, 1, 3, 5)  # (B, rows, columns, C, P, P)
    return x.reshape(batch, (height // p) * (width // p), channels * p * p)


def unpatchify(x: Tensor, patch_size: int, image_shape: tuple[int, int]) -> Tensor:
    """Put patches (B, T, D) together into images (B, C, H, W): the inverse of `patchify`."""
    batch, _, dim = x.shape
    height, width = image_shape
    p = patch_size
    x = x.reshape(batch, height // p, width // p, dim // p**2, p, p)
    x = x.permute(0, 3, 1, 4, 2, 5)  # (B, C, rows, P, columns, P)
    return x.reshape(batch, dim // p**2, height, width)
