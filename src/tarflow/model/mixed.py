"""The numbers of a token mixed before they are transformed: a transform that knows how they go together.

`NAME-mixed` in a config is the transform NAME with this in front.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tarflow.devices import without_autocast
from tarflow.model.config import SequenceConfig
from tarflow.model.transform import Rule, Transform, make_transform


class Mixed(Transform):
    """z = t(L x; params), L (D, D) lower triangular with ones on its diagonal: learned, and the same for all tokens.

    An affine t alone makes the numbers of a token independent Gaussians, given the tokens before. With L in front they
    are N(L⁻¹ shift, L⁻¹ diag(σ²) L⁻ᵀ): neighbours in a patch, and its colours, go together. The volume is that of t, L
    has none, and `inverse` is that of t and one triangular system, however many numbers there are. At first L is the
    identity, and the transform is t.

    Args:
        name: of t, an elementwise transform. config, made: as of any transform.
    """

    params_per_number = 0  # they are those of t

    def __init__(self, name: str, config: SequenceConfig, **made: Any) -> None:
        super().__init__(config, **made)
        self.inner = make_transform(name, config)  # which has no weights
        self.size, self.reads = self.inner.size, config.dim
        self.lower = nn.Parameter(torch.zeros(config.dim, config.dim, **made))  # what is below the diagonal of L

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        with without_autocast(x.device):
            mixed = x + x @ self.lower.to(x.dtype).tril(-1).mT
        return self.inner.forward(mixed, params)

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        return self._unmixed(self.inner.inverse(z, params))

    def combine(self, conditional: Tensor, unguided: Tensor, strength: Tensor | float, rule: Rule) -> Tensor:
        return self.inner.combine(conditional, unguided, strength, rule)

    def _unmixed(self, mixed: Tensor) -> Tensor:
        """The x of L x (B, n, D)."""
        with without_autocast(mixed.device):
            upper = self.lower.to(mixed.dtype).mT  # what is on its diagonal, and below, is not read
            return torch.linalg.solve_triangular(upper, mixed, upper=True, left=False, unitriangular=True)
