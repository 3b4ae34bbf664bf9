"""What a block knows of the condition while it works: what is added to every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Embedded(NamedTuple):
    """Values of a condition as a block reads them; B is 1 where all rows have the null value.

    Attributes:
        added: (B, 1, W), to every token; None adds nothing.
    """

    added: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What `Block.context` returns and `Block.conditioner` takes, for B rows, or one that stands for all.

    Attributes:
        added: (B, 1, W), to every token.
    """

    added: Tensor

    def expand(self, rows: int) -> Context:
        """The same for `rows` rows."""
        return Context(self.added.expand(rows, -1, -1))

    def above(self, other: Context) -> Context:
        """These rows, then those of another."""
        return Context(torch.cat([self.added, other.added]))

    def copy_(self, other: Context) -> None:
        """Take over the values of another of the same shape: what a GPU has recorded reads them here."""
        self.added.copy_(other.added)
