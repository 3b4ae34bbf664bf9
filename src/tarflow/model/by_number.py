"""The numbers of a token one after the other: a transform whose parameters also depend on the numbers before.

`NAME-by-number` in a config is the transform NAME with this around it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.devices import without_autocast
from tarflow.fields import ConfigError
from tarflow.model import by_number_native
from tarflow.model.condition import small_normal
from tarflow.model.config import SequenceConfig
from tarflow.model.constants import constants
from tarflow.model.transform import Rule, Transform, make_transform


class ByNumber(Transform):
    """z_d = t(x_d; params_d) with params_d = base_d + Σ_h out_dh · gelu(a_h + Σ_{e<d} into_he x_e), d = 0 … D-1.

    Without it the numbers of a token are independent given the tokens before. The block's network predicts `base`, the
    parameters of the transform t, and `a`, what the token brings to each of the hidden units; the two masked matrices
    are the same for all tokens. Hidden unit h sees the numbers before place `degrees[h]` and is seen from there on, as
    in MADE (arXiv 1502.03509). At first `out` is zero, and the transform is t.

    `forward` is one pass; `inverse` takes D small steps, each of which evaluates what has become known.

    Args:
        name: of t, an elementwise transform. config, made: as of any transform; there are as many hidden units as the
            Transformer has channels.
    """

    params_per_number = 0  # they are those of t, and the hidden units'

    def __init__(self, name: str, config: SequenceConfig, **made: Any) -> None:
        if config.dim < 2:
            raise ConfigError(f"transforms: {name} by number takes tokens of two numbers at least, got {config.dim}")
        super().__init__(config, **made)
        self.inner = make_transform(name, config)  # which has no weights
        self.single = make_transform(name, dataclasses.replace(config, dim=1, support="real"))  # of one number
        dim = config.dim
        self.hidden = self.reads = config.width
        self.size = self.inner.size + self.hidden
        self.into = nn.Parameter(small_normal(self.hidden, dim, dim**-0.5, **made))
        self.out = nn.Parameter(torch.zeros(self.single.size, dim, self.hidden, **made))
        # Hidden units in the order of their degrees, 1 … D-1, as many of each as can be.
        self.degrees = [1 + unit * (dim - 1) // self.hidden for unit in range(self.hidden)]
        self.ends = [sum(degree <= place for degree in self.degrees) for place in range(dim)]  # seen by each number

    def _masked(self) -> tuple[Tensor, Tensor]:
        """`into` (H, D) and `out` (k, D, H), with zeros where a number would see itself or what comes after it."""
        device, dim = self.into.device, len(self.ends)

        def make() -> tuple[Tensor, ...]:
            place = torch.arange(dim, dtype=torch.int64, device=device)
            degree = torch.tensor(self.degrees, dtype=torch.int64, device=device)
            return place < degree.unsqueeze(1), degree <= place.unsqueeze(1)  # (H, D), (D, H)

        sees, seen = constants(("by number", self.hidden, dim, device), make)
        return torch.where(sees, self.into, 0), torch.where(seen, self.out, 0)

    def _split(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """`base` (B, n, k·D) and `a` (B, n, H)."""
        return params[..., : self.inner.size], params[..., self.inner.size :]

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.inner(x, self._given_numbers(x, params))
        return result

    def forward_by_number(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner.forward_by_number(x, self._given_numbers(x, params))

    def _given_numbers(self, x: Tensor, params: Tensor) -> Tensor:
        """The parameters of t (B, n, k·D) for tokens x whose numbers are all known."""
        base, a = self._split(params)
        into, out = (weight.to(params.dtype) for weight in self._masked())
        with without_autocast(x.device):
            hidden = F.gelu(a + x.to(params.dtype) @ into.t())
            return base + hidden @ out.flatten(0, 1).t()

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        return self._decoded(z, [params])

    def guided_inverse(
        self, z: Tensor, conditional: Tensor, unguided: Tensor, strength: Tensor | float, rule: Rule
    ) -> Tensor:
        """Each number guided in its turn: both branches see the guided numbers before it."""
        return self._decoded(z, [conditional, unguided], strength, rule)

    def _decoded(
        self, z: Tensor, branches: list[Tensor], strength: Tensor | float = 0.0, rule: Rule = "paper"
    ) -> Tensor:
        """z to x, number by number, by the parameters of one branch, or of two with guidance between them."""
        if by_number_native.fits(self.inner, z, *branches, self.into, self.out):
            weights = (self.into, self.out, self.ends)
            return by_number_native.inverse(self.inner, *weights, z, branches, strength, rule)
        dtype = branches[0].dtype
        into, out = self.into.to(dtype), self.out.to(dtype)
        parts = [self._split(branch) for branch in branches]
        bases = [base.unflatten(-1, (self.single.size, len(self.ends))) for base, _ in parts]  # (B, n, k, D)
        hidden = [a[..., :0] for _, a in parts]
        x, seen = z[..., :0], 0
        for place, end in enumerate(self.ends):
            if end > seen:  # what these units see is complete
                brought = x.to(dtype) @ into[seen:end, :place].t()
                fresh = [F.gelu(a[..., seen:end] + brought) for _, a in parts]
                hidden, seen = [torch.cat(both, dim=-1) for both in zip(hidden, fresh, strict=True)], end
            weight = out[:, place, :end].t()
            params = [base[..., place] + known @ weight for base, known in zip(bases, hidden, strict=True)]
            used = params[0] if len(params) == 1 else self.single.combine(params[0], params[1], strength, rule)
            x = torch.cat([x, self.single.inverse(z[..., place : place + 1], used)], dim=-1)
        return x
