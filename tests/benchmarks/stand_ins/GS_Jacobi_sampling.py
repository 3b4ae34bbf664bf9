"""A stand-in for the file of that name in GS-Jacobi_for_TarFlow: Jacobi iteration on whole blocks, clamped to ±3."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_spec = importlib.util.spec_from_file_location("_stand_in", Path(__file__).with_name("transformer_flow.py"))
_base = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_base)


class Model(_base.Model):
    """As the official one, without the additive variant, and with settings for each block in the order of decoding."""

    def __init__(self, **arguments: Any) -> None:
        assert "nvp" not in arguments
        super().__init__(**arguments)

    def reverse(
        self,
        x: Tensor,
        y: Tensor | None = None,
        guidance: float = 0,
        attn_temp: float = 1.0,
        annealed_guidance: bool = False,
        *,
        num_GS_list: list[int],
        max_jacobi_list: list[int],
        guess_list: list[int],
        ebound: float,
    ) -> Tensor:
        assert annealed_guidance
        assert len(num_GS_list) == len(guess_list) == len(self.blocks)
        for block, most in zip(reversed(self.blocks), max_jacobi_list, strict=True):
            z = new = block.order(x, 1)
            for _ in range(most):
                old = new
                log_scale, shift = block.guided(old[:, :-1], y, guidance, attn_temp, z.shape[1])
                new = torch.cat([z[:, :1], (z[:, 1:] * log_scale.exp() + shift).clamp(-3, 3)], dim=1)
                if (new - old).norm() <= ebound:
                    break
            x = block.order(new, 1)
        return self.images(x)
