"""Conditions that have a value for each token of the sequence: the kind of an atom, a map under the picture.

A block adds what it makes of a value to its token, and to the place from which that token is predicted. So a token is
given its own value and those of the tokens before it, in the order of the block; blocks of other orders see the rest.
It costs no tokens, where a prefix (`model.prefix`) of as many costs as much as the sequence itself; a prefix is seen
whole by each token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.devices import without_autocast
from tarflow.model.condition import small_normal
from tarflow.model.context import Embedded
from tarflow.model.events import patchify
from tarflow.model.numeric import Numbers


class AlignedTokens(Numbers):
    """D numbers for each of the T tokens: c is (B, T, D). Each of the D is standardised by its mean over all tokens.

    What stands at tokens that are padding changes nothing, but for that mean.
    """

    def __init__(self, tokens: int, dim: int, **made: Any) -> None:
        super().__init__((tokens, dim), (1, dim), **made)

    def embedding(self, width: int, **made: Any) -> nn.Module:
        tokens, dim = self.value_shape
        return AlignedEmbedding(tokens, dim, width, **made)


class AlignedImage(Numbers):
    """An image in as many patches as x has: c is (B, C, H, W), each channel standardised. A token is given the patch
    that lies where it does, and the eight around that, of which those beyond the edge are the mean."""

    def __init__(self, channels: int, height: int, width: int, patch: int, **made: Any) -> None:
        super().__init__((channels, height, width), (channels, 1, 1), **made)
        self.patch = patch

    def standardised(self, c: Any) -> Any:
        """Patches and what is around them (B, T, 9·C·P²), of standardised pixels."""
        if c is None:
            return None
        side, (_, height, width) = self.patch, self.value_shape
        wide = F.pad(super().standardised(c), (side,) * 4)
        shifts = [(i * side, j * side) for i in range(3) for j in range(3)]
        return torch.cat([patchify(wide[..., i : i + height, j : j + width], side) for i, j in shifts], dim=2)

    def embedding(self, width: int, **made: Any) -> nn.Module:
        channels, height, columns = self.value_shape
        tokens = height * columns // self.patch**2
        return AlignedEmbedding(tokens, 9 * channels * self.patch**2, width, **made)


class AlignedEmbedding(nn.Module):
    """An MLP of one hidden layer for the value of each token, the same for all, and a learned row for null."""

    def __init__(self, tokens: int, dim: int, width: int, **made: Any) -> None:
        super().__init__()
        self.tokens = tokens
        self.null = nn.Parameter(small_normal(2, width, **made))
        self.into, self.out = nn.Linear(dim, width, **made), nn.Linear(width, 2 * width, **made)

    def forward(self, c: Tensor | None) -> Embedded:
        null = self.null.expand(1, self.tokens, -1, -1)
        if c is None:
            return Embedded(aligned=null)
        missing = c.isnan().flatten(1).any(dim=1).view(-1, 1, 1, 1)  # a row is null as a whole
        with without_autocast(c.device):  # as of any other numbers
            hidden = F.gelu(self.into(torch.where(missing.squeeze(-1), 0, c).to(self.null.dtype)))
            known = self.out(hidden).unflatten(-1, (2, -1))
        return Embedded(aligned=torch.where(missing, null, known))
