"""What a block knows of the condition while it works: what is added to every token, and what stands before them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Embedded(NamedTuple):
    """Values of a condition as a block reads them; B is 1 where all rows have the null value.

    Attributes:
        added: (B, 1, W), to every token; None adds nothing.
        prefix: (B, P, W), tokens that every token sees; None has none.
        aligned: (B, T, 2, W), in the order of the sequence, what the value of each token adds to that token, and to the
            place from which it is predicted; None adds nothing.
    """

    added: Tensor | None = None
    prefix: Tensor | None = None
    aligned: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What `Block.context` returns and `Block.conditioner` takes, for B rows, or one that stands for all.

    Attributes:
        added: (B, 1, W), to every token, or (B, S, W), to each slot in the block's own order, or None.
        prefix: (layers, 2, B, H, P, K), keys and values of the tokens before the sequence, in every layer, or None.
    """

    added: Tensor | None
    prefix: Tensor | None = None

    def added_to(self, start: int, count: int) -> Tensor | None:
        """What is added to slots start … start+count-1: (B, 1, W), or (B, count, W), or None."""
        if self.added is None or self.added.shape[1] == 1:
            return self.added
        return self.added[:, start : start + count]

    def expand(self, rows: int) -> Context:
        """The same for `rows` rows."""
        added = None if self.added is None else self.added.expand(rows, -1, -1)
        return Context(added, None if self.prefix is None else self.prefix.expand(-1, -1, rows, -1, -1, -1))

    def above(self, other: Context) -> Context:
        """These rows, then those of another of the same condition."""
        added, prefix = self.added, self.prefix
        if added is not None and other.added is not None:
            added = torch.cat([added, other.added])
        if prefix is not None and other.prefix is not None:
            prefix = torch.cat([prefix, other.prefix], dim=2)
        return Context(added, prefix)

    def copy_(self, other: Context) -> None:
        """Take over the values of another of the same shape: what a GPU has recorded reads them here."""
        for mine, new in ((self.added, other.added), (self.prefix, other.prefix)):
            if mine is not None and new is not None:
                mine.copy_(new)
