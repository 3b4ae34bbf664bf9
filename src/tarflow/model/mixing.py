"""The numbers of a token mixed before a block, so that it knows how they go together.

`-mixed` behind the name of a transform in a config puts this in front of its block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tarflow.devices import without_autocast


class Mixing(nn.Module):
    """x → L x, L (D, D) lower triangular with ones on its diagonal: learned, and the same for all tokens.

    Given the tokens before, an affine block makes independent Gaussians of the numbers of a token. Of the mixed ones,
    that is N(L⁻¹ shift, L⁻¹ diag(σ²) L⁻ᵀ): neighbours in a patch, and its colours, go together. The volume stays, and
    decoding takes a triangular system once a block, behind all of its steps. At first L is the identity.

    Glow has such a matrix in front of each step, a 1x1 convolution, and learns its volume, too: arXiv 1807.03039.
    """

    def __init__(self, dim: int, **made: Any) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(dim, dim, **made))  # of which only what is below the diagonal is read

    def forward(self, x: Tensor) -> Tensor:
        """L x of each token x (B, T, D)."""
        with without_autocast(x.device):
            return x + x @ self.lower.to(x.dtype).tril(-1).mT

    def inverse(self, mixed: Tensor) -> Tensor:
        """The x (B, T, D) of L x."""
        with without_autocast(mixed.device):
            upper = self.lower.to(mixed.dtype).mT
            return torch.linalg.solve_triangular(upper, mixed, upper=True, left=False, unitriangular=True)
