"""What a density is conditioned on: y in p(x|y).

A condition knows its values: how they are checked, which is null, how they are dropped in training and gone over in a
marginal; and it makes the module with the weights, one a block, that says what they add to every token. A new one is a
class here, or in a file of its own, and one line in `CONDITIONS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tarflow.fields import ConfigError, own_number
from tarflow.model.checks import known_true

NULL_CLASS = -1
"""The label of no class: its embedding is the mean of all class embeddings."""


class Condition:
    """No condition at all: y is None, or null in every row."""

    null = NULL_CLASS
    """The value of a row that has no condition."""

    value_ndim = 0
    """Axes of the value of one row."""

    size = 0
    """How many values there are; 0 where they are not to be counted."""

    def __bool__(self) -> bool:
        """Whether there is anything to condition on."""
        return self.size > 0

    def as_values(self, y: Any) -> Tensor:
        """Values that came as a tensor, an array, a sequence or one int, as a tensor of their own dtype."""
        if isinstance(y, Tensor):
            return y
        if isinstance(y, list | tuple) and any(isinstance(own_number(label), bool) for label in y):
            raise ValueError(f"y: expected integer labels, got a boolean among {y!r}")
        try:
            return torch.as_tensor(y, device="cpu", dtype=None)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"y: expected integer labels, got {type(y).__name__} {y!r}") from None

    def check(self, y: Any, batch: int, device: torch.device) -> Tensor | None:
        """Labels as int64 on `device`; ValueError where they are not (batch,) known ones.

        Where their values cannot be asked for (`known_true`), an unknown one becomes an index that no table has.
        """
        if y is None:
            return None
        y = self.as_values(y)
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or tuple(y.shape) != (batch,):
            raise ValueError(f"y: expected ({batch},) integer labels, got {tuple(y.shape)} of {y.dtype}")
        y = y.to(torch.int64)
        unknown = (y < NULL_CLASS) | (y >= self.size)
        if known_true(unknown.any()):
            known = f"0 to {self.size - 1}" if self.size else "no class (unconditional model)"
            raise ValueError(f"y: expected {known}, or {NULL_CLASS} for the null class, got {y[unknown][0].item()}")
        return torch.where(unknown, self.size + 1, y).to(device)

    def drop(self, y: Tensor | None, dropped: Tensor) -> Tensor | None:
        """Checked values with null where `dropped` (B,) is true."""
        return None if y is None else torch.where(dropped, self.null, y)

    def sweep(self) -> Tensor:
        """The values (K,) that a marginal goes over, all equally likely; none where there is no condition."""
        return torch.arange(self.size, device="cpu", dtype=torch.int64)

    def differs(self, y: Tensor | None) -> bool:
        """Whether checked values say more than null does in any row; the mean of one class is that class."""
        return self.size > 1 and y is not None and bool((y != self.null).any())

    def embedding(self, width: int, **made: Any) -> nn.Module | None:
        """A new module from checked values to what is added to every token, (B, 1, W), or (1, 1, W) for None."""
        return None


class Classes(Condition):
    """One of `size` classes: y is (B,) integers, -1 (`NULL_CLASS`) or None for the null class."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"classes: expected a positive number, got {size}")
        self.size = size

    def embedding(self, width: int, **made: Any) -> nn.Module:
        return ClassEmbedding(self.size, width, **made)


class ClassEmbedding(nn.Module):
    """A row of a table for each class, and their mean for the null class."""

    def __init__(self, size: int, width: int, **made: Any) -> None:
        super().__init__()
        self.classes = nn.Parameter(small_normal(size, width, **made))

    def forward(self, y: Tensor | None) -> Tensor:
        null = self.classes.mean(dim=0, keepdim=True)
        if y is None:
            return null.unsqueeze(0)
        table = torch.cat([self.classes, null])
        return table[torch.where(y == NULL_CLASS, len(self.classes), y)].unsqueeze(1)


def small_normal(rows: int, width: int, std: float = 1e-2, **made: Any) -> Tensor:
    """N(0, std²), (rows, W). On the meta device nothing is drawn, for which PyTorch would import its compiler."""
    table = torch.empty(rows, width, **made)
    return table if table.is_meta else torch.randn(rows, width, **made) * std


CONDITIONS: dict[str, Callable[..., Condition]] = {  # of what is behind colons
    "none": Condition,
    "classes": lambda size: Classes(int(size)),  # classes:NUMBER
}


def make_condition(condition: str) -> Condition:
    """The condition that a config names, such as "none" or "classes:10"; ConfigError where there is none."""
    name, *arguments = condition.split(":")
    try:
        return CONDITIONS[name](*arguments)
    except (KeyError, TypeError, ValueError):
        expected = f"one of {', '.join(CONDITIONS)} (classes:NUMBER)"
        raise ConfigError(f"condition: expected {expected}, got {condition!r}") from None
