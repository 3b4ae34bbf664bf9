"""What a density is conditioned on: c in p(x|c).

A condition knows its values: how they are checked, which are null, how they are dropped in training and gone over in a
marginal. Nobody else indexes into a value. It makes the modules with the weights, one a block, that say what the values
are to a block. A new one is a class here, or in a file of its own, and one line of `CONDITIONS` in `architecture.py`.
"""

from __future__ import annotations

import importlib
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tarflow.architecture import CONDITIONS, condition_parts
from tarflow.fields import own_number
from tarflow.model.checks import known_true
from tarflow.model.context import Embedded

NULL_CLASS = -1
"""The label of no class: its embedding is the mean of all class embeddings."""

Value: TypeAlias = "Tensor | tuple[Any, ...] | None"
"""Of a condition: a tensor with a row for each sequence, a tuple of one for each of several, or None, all rows null."""


class Condition(nn.Module):
    """No condition at all: c is None, or null in every row. The methods are those of every condition.

    Attributes:
        value_shape: of the value of one row. null: what a row holds that has no condition.
        size: how many values there are; 0 where they are not to be counted.
        places: tokens that stand before the sequence.
        drops: axes of what `drop` takes behind the rows: how many ways there are to drop a value.
    """

    value_shape: tuple[int, ...] = ()
    null: float = NULL_CLASS
    size = 0
    places = 0
    drops: tuple[int, ...] = ()

    def __init__(self, **made: Any) -> None:
        super().__init__()

    def __bool__(self) -> bool:
        """Whether there is anything to condition on."""
        return False

    # --- values --------------------------------------------------------------------------------------------------

    def as_values(self, c: Any) -> Any:
        """Values that came as a tensor, an array, a sequence or one int, as a tensor of their own dtype."""
        if c is None or isinstance(c, Tensor):
            return c
        if isinstance(c, list | tuple) and any(isinstance(own_number(label), bool) for label in c):
            raise ValueError(f"y: expected integer labels, got a boolean among {c!r}")
        try:
            return torch.as_tensor(c, device="cpu", dtype=None)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"y: expected integer labels, got {type(c).__name__} {c!r}") from None

    def check(self, c: Any, batch: int, device: torch.device) -> Any:
        """Labels as int64 on `device`; ValueError where they are not (batch,) known ones.

        Where their values cannot be asked for (`known_true`), an unknown one becomes an index that no table has.
        """
        if c is None:
            return None
        c = self.as_values(c)
        if c.is_floating_point() or c.is_complex() or c.dtype == torch.bool or tuple(c.shape) != (batch,):
            raise ValueError(f"y: expected ({batch},) integer labels, got {tuple(c.shape)} of {c.dtype}")
        c = c.to(torch.int64)
        unknown = (c < NULL_CLASS) | (c >= self.size)
        if known_true(unknown.any()):
            known = f"0 to {self.size - 1}" if self.size else "no class (unconditional model)"
            raise ValueError(f"y: expected {known}, or {NULL_CLASS} for the null class, got {c[unknown][0].item()}")
        return torch.where(unknown, self.size + 1, c).to(device)

    def count(self, c: Any) -> int | None:
        """How many rows a value has; None for None."""
        return None if c is None else c.shape[0]

    def rows(self, c: Any, index: slice | Tensor) -> Any:
        """The rows that a slice or a tensor of integers names."""
        if c is None:
            return None
        return c[index.to(c.device) if isinstance(index, Tensor) else index]

    def chunk(self, c: Any, parts: int) -> list[Any]:
        """The rows in so many parts, as `Tensor.chunk` has them."""
        return [None] * parts if c is None else list(c.chunk(parts))

    def repeat(self, c: Any, n: int) -> Any:
        """Each row n times in succession."""
        return None if c is None else c.repeat_interleave(n, dim=0)

    def cat(self, values: list[Any]) -> Any:
        """The rows of several values, one after the other; all of them None, or none."""
        return None if values[0] is None else torch.cat(values)

    def flatten(self, c: Any) -> tuple[Any, torch.Size]:
        """Values of any leading shape, and of any kind that `as_values` takes, as rows, and that shape."""
        c = self.as_values(c)
        if c is None:
            return None, torch.Size()
        axes = len(self.value_shape)
        shape = c.shape[: c.ndim - axes]
        if c.shape[len(shape) :] != self.value_shape:
            expected = ", ".join(["…", *map(str, self.value_shape)])
            raise ValueError(f"y: expected ({expected}), got {tuple(c.shape)}")
        return c.reshape(shape.numel(), *self.value_shape), shape

    def labels(self, c: Any) -> Any:
        """The classes (B,) among checked values; None where there are none."""
        return c if self.size else None

    def labelled(self, c: Any, label: int, count: int) -> Any:
        """The values of `count` rows with this class in each, and what else they say."""
        return torch.full((count,), label, device="cpu", dtype=torch.int64)

    # --- null ----------------------------------------------------------------------------------------------------

    def missing(self, c: Any) -> Tensor | None:
        """Which rows of checked values are null, (B,); None of None, all of whose rows are."""
        return None if c is None else c == NULL_CLASS

    def differs(self, c: Any) -> bool:
        """Whether checked values say more than null does in any row."""
        missing = self.missing(c)
        return bool(self) and missing is not None and not bool(missing.all())

    def drop(self, c: Any, dropped: Tensor) -> Any:
        """Checked values with null where `dropped` (B,) is true."""
        return None if c is None else torch.where(dropped.view(-1, *(1 for _ in self.value_shape)), self.null, c)

    def sweep(self) -> Tensor:
        """The values (K,) that a marginal goes over, all equally likely; none where they cannot be counted."""
        return torch.arange(self.size, device="cpu", dtype=torch.int64)

    # --- what a network makes of it ------------------------------------------------------------------------------

    def example(self) -> Any:
        """Values of two rows, neither of which is like the other, for whoever traces a network."""
        return torch.tensor([0, NULL_CLASS], device="cpu", dtype=torch.int64) if self else None

    def fit(self, c: Any) -> None:
        """Remember what is needed of the values that training will see, as their mean; of classes that is nothing."""

    def standardised(self, c: Any) -> Any:
        """Checked values as an embedding takes them."""
        return c

    def embedding(self, width: int, **made: Any) -> nn.Module | None:
        """A new module from standardised values to `Embedded`, of which each block has its own."""
        return None


class Classes(Condition):
    """One of `size` classes: c is (B,) integers, -1 (`NULL_CLASS`) or None for the null class."""

    def __init__(self, size: int, **made: Any) -> None:
        super().__init__()
        self.size = size

    def __bool__(self) -> bool:
        return True

    def differs(self, c: Any) -> bool:
        return self.size > 1 and super().differs(c)  # the mean of one class is that class

    def embedding(self, width: int, **made: Any) -> nn.Module:
        return ClassEmbedding(self.size, width, **made)


class ClassEmbedding(nn.Module):
    """A row of a table for each class, and their mean for the null class."""

    def __init__(self, size: int, width: int, **made: Any) -> None:
        super().__init__()
        self.classes = nn.Parameter(small_normal(size, width, **made))

    def forward(self, c: Tensor | None) -> Embedded:
        null = self.classes.mean(dim=0, keepdim=True)
        if c is None:
            return Embedded(null.unsqueeze(0))
        table = torch.cat([self.classes, null])
        return Embedded(table[torch.where(c == NULL_CLASS, len(self.classes), c)].unsqueeze(1))


def small_normal(rows: int, width: int, std: float = 1e-2, **made: Any) -> Tensor:
    """N(0, std²), (rows, W). On the meta device nothing is drawn, for which PyTorch would import its compiler."""
    table = torch.empty(rows, width, **made)
    return table if table.is_meta else torch.randn(rows, width, **made) * std


def make_condition(condition: str, **made: Any) -> Condition:
    """The condition that a config names, such as "classes:10"; `made` is the device and the dtype of what it keeps."""
    parts = []
    for name, sizes in condition_parts(condition):
        module, _, found = CONDITIONS[name].place.partition(":")
        parts.append(getattr(importlib.import_module(module), found)(*sizes, **made))
    if len(parts) == 1:
        part: Condition = parts[0]
        return part
    from tarflow.model.several import Several  # which is made of others

    return Several(parts)
