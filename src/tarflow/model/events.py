"""What a flow gives a density to, and how that becomes a sequence of tokens: a flow's adapter at the door.

A new kind of event is a class here, or in a file of its own, and a flow that is made with it, as `TarFlow` is.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from tarflow.model.checks import check_batch, known_true

PIXELS_FROM = 8.0
"""Images without a negative number, the largest of which lies between these, are pixels that nobody has scaled."""
PIXELS_TO = 255


class Tokens:
    """Sequences (T, D), which are tokens already.

    Attributes:
        shape: of one event. meaning: what error messages call a batch of them.
    """

    meaning = "tokens"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def check(self, x: Any, name: str = "x") -> None:
        """Raise ValueError unless x is a floating tensor (B, *shape)."""
        check_batch(name, x, self.meaning, self.shape)

    def to_tokens(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        """x (B, *shape) to tokens (B, T, D), and log|det| of that by token, (B, T) or one number for all."""
        return x, 0.0

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) to x (B, *shape): the inverse of `to_tokens`."""
        return tokens


class Images(Tokens):
    """Images (C, H, W), of which each patch of P·P pixels is a token, in raster order."""

    meaning = "images"

    def __init__(self, shape: tuple[int, int, int], patch_size: int) -> None:
        super().__init__(shape)
        self.patch_size = patch_size

    def check(self, x: Any, name: str = "x") -> None:
        """Raise ValueError unless x is a floating tensor (B, C, H, W) of this size; warn where it holds pixels."""
        check_batch(name, x, self.meaning, self.shape, "; pixels are scaled to -1 … 1 first")
        if x.device.type != "cpu" or not x.numel():  # a look at values would make the host wait for another device
            return
        if known_true((x.amin() >= 0) & (x.amax() > PIXELS_FROM) & (x.amax() <= PIXELS_TO)):
            warnings.warn(
                f"{name}: values from {x.min():g} to {x.max():g} look like pixels; the model sees -1 … 1, "
                "2·k/(levels - 1) - 1",
                stacklevel=3,
            )

    def to_tokens(self, x: Tensor) -> tuple[Tensor, Tensor | float]:
        return patchify(x, self.patch_size), 0.0

    def from_tokens(self, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, self.patch_size, (self.shape[1], self.shape[2]))


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
