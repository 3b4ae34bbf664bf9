"""Conditions that are numbers: standardised by what was seen, and null where all of a row is NaN."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tarflow.devices import without_autocast
from tarflow.model.checks import known_true
from tarflow.model.condition import Condition, small_normal
from tarflow.model.context import Embedded

SMALLEST_SHARE = 1e-6
"""Of the largest number of a column, the deviation below which the column is a constant, and is not divided by it."""


class Numbers(Condition):
    """An array of numbers a row, standardised before it is embedded; a row of NaN alone is null.

        standardised = (c - mean) / deviation

    Both are buffers, 0 and 1 until `fit` sets them from the values that training will see. Several numbers that are of
    one kind, as those of all tokens are, share them: `shared` has 1 for the axes that they are the same along.
    """

    null = math.nan
    mean: Tensor
    deviation: Tensor

    def __init__(self, value_shape: tuple[int, ...], shared: tuple[int, ...], **made: Any) -> None:
        super().__init__()
        self.value_shape = value_shape
        self.register_buffer("mean", torch.zeros(shared, **made))
        self.register_buffer("deviation", torch.ones(shared, **made))

    def __bool__(self) -> bool:
        return True

    def as_values(self, c: Any) -> Any:
        """Values that came as a tensor, an array, or numbers in sequences, as a tensor of their own dtype."""
        if c is None or isinstance(c, Tensor):
            return c
        try:
            return torch.as_tensor(c, device="cpu", dtype=None)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"y: expected {self.value_shape} numbers a row, got {type(c).__name__}") from None

    def check(self, c: Any, batch: int, device: torch.device) -> Any:
        """Floating numbers (batch, *value_shape) on `device`; ValueError where they are not finite, nor a row NaN."""
        if c is None:
            return None
        c, expected = self.as_values(c), (batch, *self.value_shape)
        if c.is_complex() or c.dtype == torch.bool or tuple(c.shape) != expected:
            one = tuple(c.shape) in (self.value_shape, (1, *self.value_shape))
            hint = f"; one value for all rows is c.expand{expected}" if one else ""
            raise ValueError(f"y: expected numbers {expected}, got {tuple(c.shape)} of {c.dtype}{hint}")
        c = c if c.is_floating_point() else c.to(self.mean.dtype)
        wrong = ~(c.isfinite().flatten(1).all(dim=1) | self._missing(c))
        if known_true(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(f"y: expected finite numbers, or NaN in all of a row for null; row {row} has others")
        return c.to(device)

    def missing(self, c: Any) -> Tensor | None:
        return None if c is None else self._missing(c)

    @staticmethod
    def _missing(c: Tensor) -> Tensor:
        return c.isnan().flatten(1).all(dim=1)

    @torch.no_grad()
    def fit(self, c: Any) -> None:
        """Standardise by the mean and the deviation of checked values from now on; rows that are null do not count."""
        if c is None or not bool((known := ~self._missing(c)).any()):
            return
        c = c[known].double()
        axes = [0, *(axis for axis, size in enumerate(self.mean.shape, 1) if size != self.value_shape[axis - 1])]
        mean = c.mean(dim=axes, keepdim=True)
        deviation = (c - mean).square().mean(dim=axes, keepdim=True).sqrt()
        constant = deviation <= SMALLEST_SHARE * c.abs().amax(dim=axes, keepdim=True)
        self.mean.copy_(mean.squeeze(0))
        self.deviation.copy_(torch.where(constant, 1.0, deviation).squeeze(0))

    def standardised(self, c: Any) -> Any:
        if c is None:
            return None
        dtype = torch.promote_types(torch.promote_types(c.dtype, self.mean.dtype), torch.float32)
        return (c.to(dtype) - self.mean.to(dtype)) / self.deviation.to(dtype)

    def example(self) -> Any:
        mean, deviation = (each.detach().cpu().expand(self.value_shape) for each in (self.mean, self.deviation))
        return torch.stack([mean, mean + deviation])


class Vector(Numbers):
    """N numbers: c is (B, N). They are added to every token, after a small MLP."""

    def __init__(self, size: int, **made: Any) -> None:
        super().__init__((size,), (size,), **made)

    def embedding(self, width: int, **made: Any) -> nn.Module:
        return VectorEmbedding(self.value_shape[0], width, **made)


class VectorEmbedding(nn.Module):
    """An MLP of one hidden layer, and a learned row for null."""

    def __init__(self, size: int, width: int, **made: Any) -> None:
        super().__init__()
        self.null = nn.Parameter(small_normal(1, width, **made))
        self.mlp = nn.Sequential(nn.Linear(size, width, **made), nn.GELU(), nn.Linear(width, width, **made))

    def forward(self, c: Tensor | None) -> Embedded:
        if c is None:
            return Embedded(self.null.unsqueeze(0))
        missing = c.isnan().all(dim=1, keepdim=True)
        with without_autocast(c.device):  # a number that is rounded to 8 bits is another condition
            known = self.mlp(torch.where(missing, 0, c).to(self.null.dtype))
        return Embedded(torch.where(missing, self.null, known).unsqueeze(1))
