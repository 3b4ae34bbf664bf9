"""Conditions that are tokens themselves, a sequence or an image in patches: a prefix that every token sees.

The layers of a block run over the prefix first, in which every token sees all others, and none of the sequence. The
keys and values that come out of that are seen by all tokens of the sequence. A prefix has positions of its own, which
are learned, and is not turned by rotary ones, which are those of the lattice of the sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tarflow.devices import without_autocast
from tarflow.model.condition import small_normal
from tarflow.model.context import Embedded
from tarflow.model.events import patchify
from tarflow.model.numeric import Numbers


class GivenTokens(Numbers):
    """T tokens of D numbers: c is (B, T, D). Each of the D numbers is standardised by its mean over all tokens."""

    def __init__(self, tokens: int, dim: int, **made: Any) -> None:
        super().__init__((tokens, dim), (1, dim), **made)
        self.places = tokens

    def embedding(self, width: int, **made: Any) -> nn.Module:
        tokens, dim = self.value_shape
        return PrefixEmbedding(tokens, dim, width, **made)


class GivenImage(Numbers):
    """An image in patches of `patch` pixels a side: c is (B, C, H, W). Each channel is standardised."""

    def __init__(self, channels: int, height: int, width: int, patch: int, **made: Any) -> None:
        super().__init__((channels, height, width), (channels, 1, 1), **made)
        self.patch = patch
        self.places = height * width // patch**2

    def standardised(self, c: Any) -> Any:
        """Patches (B, P, D), of standardised pixels."""
        return None if c is None else patchify(super().standardised(c), self.patch)

    def embedding(self, width: int, **made: Any) -> nn.Module:
        return PrefixEmbedding(self.places, self.value_shape[0] * self.patch**2, width, **made)


class PrefixEmbedding(nn.Module):
    """A linear layer and a learned position for each token, and a learned token at all places for null."""

    def __init__(self, tokens: int, dim: int, width: int, **made: Any) -> None:
        super().__init__()
        self.tokens = tokens
        self.linear = nn.Linear(dim, width, **made)
        self.places = nn.Parameter(small_normal(tokens, width, **made))
        self.null = nn.Parameter(small_normal(1, width, **made))

    def forward(self, c: Tensor | None) -> Embedded:
        null = (self.null + self.places).unsqueeze(0)
        if c is None:
            return Embedded(prefix=null)
        missing = c.isnan().flatten(1).all(dim=1).view(-1, 1, 1)
        with without_autocast(c.device):  # as a block reads its tokens
            known = self.linear(torch.where(missing, 0, c).to(self.null.dtype)) + self.places
        return Embedded(prefix=torch.where(missing, null, known))
