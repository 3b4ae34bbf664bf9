"""What a flow gives a density to, and how that becomes a sequence of tokens: a flow's adapter at the door.

A new kind of event is a class here, or in a file of its own, and a flow that is made with it, as `TarFlow` is.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from tarflow.model.checks import check_batch, known_true
from tarflow.model.support import Preprocessing

PIXELS_FROM = 8.0
"""Images without a negative number, the largest of which lies between these, are pixels that nobody has scaled."""
PIXELS_TO = 255


class Tokens(nn.Module):
    """Sequences (T, D), which are tokens already, once their numbers are mapped to real ones and standardised.

    Args:
        shape: of one event. support, standardise: of the numbers along its last axis, as `Preprocessing` takes them.

    Attributes:
        meaning: what error messages call a batch of events.
    """

    meaning = "tokens"
    may_be_padded = True
    """Whether some tokens of an event may be missing."""

    def __init__(
        self, shape: tuple[int, ...], support: str | Sequence[str] = "real", standardise: bool = False, **made: Any
    ) -> None:
        super().__init__()
        self.shape = shape
        preprocessing = Preprocessing(support, shape[-1], standardise, **made)
        self.preprocessing = None if preprocessing.is_identity else preprocessing

    @property
    def support(self) -> Constraint:
        """Where x may lie, as a constraint of torch.distributions on an event: elsewhere the density is 0."""
        numbers = constraints.real if self.preprocessing is None else self.preprocessing.constraint
        return constraints.independent(numbers, len(self.shape))

    def check(self, x: Any, name: str = "x") -> None:
        """Raise ValueError unless x is a floating tensor (B, *shape)."""
        check_batch(name, x, self.meaning, self.shape)

    def to_tokens(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        """x (B, *shape) to tokens (B, T, D), and log|det| of that by token, (B, T) or one number for all.

        Both are 0 where a mask (B, T) says that there is no token, whatever x is there.
        """
        if mask is not None:
            x = self.filled(x, mask)
        if self.preprocessing is None:
            return self.cut(x), 0.0
        x, slopes = self.preprocessing(x)
        tokens, ladj = self.cut(x), self.cut(slopes).sum(dim=2)
        return (tokens, ladj) if mask is None else (only(mask, tokens), only(mask, ladj))

    def filled(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (…, T, D) with numbers of the support where there is no token: nothing reads what was there."""
        return torch.where(mask.unsqueeze(-1), x, self.from_tokens(torch.zeros_like(x[:1])))

    def from_tokens(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, T, D) to x (B, *shape), 0 where there is no token: the inverse of `to_tokens`."""
        x = self.join(tokens)
        x = x if self.preprocessing is None else self.preprocessing.inverse(x)
        return only(mask, x)

    def fit(self, x: Tensor, name: str = "x", mask: Tensor | None = None) -> None:
        """Standardise by these: keep mean and deviation of each number along the last axis, over x (B, *shape).

        Of tokens only those count that a mask (B, T) says are there. Nothing is kept where the config says
        `standardise=False`.

        Raises ValueError, which begins with `name`, where x has another shape, a number outside of its support, NaN, or
        a number that is the same everywhere: it has no density.
        """
        self.check(x, name)
        if self.preprocessing is not None:
            self.preprocessing.fit(x.reshape(-1, self.shape[-1]) if mask is None else x[mask.to(x.device)], name)

    def cut(self, x: Tensor) -> Tensor:
        """x (B, *shape) to tokens (B, T, D), number by number."""
        return x

    def join(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T, D) to x (B, *shape): the inverse of `cut`."""
        return tokens


class Vectors(Tokens):
    """Vectors (N,), of which N/T numbers in succession are a token."""

    meaning = "vectors"
    may_be_padded = False

    def __init__(self, dim: int, tokens: int, support: str | Sequence[str], standardise: bool, **made: Any) -> None:
        super().__init__((dim,), support, standardise, **made)
        self.tokens = tokens

    def cut(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.tokens, -1))

    def join(self, tokens: Tensor) -> Tensor:
        return tokens.flatten(1)


class Images(Tokens):
    """Images (C, H, W), of which each patch of P·P pixels is a token, in raster order."""

    meaning = "images"
    may_be_padded = False

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

    def cut(self, x: Tensor) -> Tensor:
        return patchify(x, self.patch_size)

    def join(self, tokens: Tensor) -> Tensor:
        return unpatchify(tokens, self.patch_size, (self.shape[1], self.shape[2]))


def only(mask: Tensor | None, values: Tensor) -> Tensor:
    """Values (B, T, …) where a mask (B, T) says that there is a token, and 0 elsewhere; without a mask, all."""
    return values if mask is None else torch.where(mask.view(*mask.shape, *(1,) * (values.ndim - 2)), values, 0)


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
