"""The causal Transformer: pre-norm layers of multi-head attention and a GELU MLP.

No mask is stored. Queries of patches start … start+n-1 see keys 0 … their own position, which is one of three cases:
the whole sequence (`is_causal`), a single query (no mask), a window (lower-right causality).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.config import Recompute
from tarflow.model.cache import KVCache
from tarflow.model.recompute import gelu_linear, norm_linear
from tarflow.model.rotary import rotated

CPU_QUERIES = 128
"""Queries that the CPU's attention takes at a time: its kernel computes what causality hides, and so less is hidden."""

WORTH_FORGETTING = 1 << 18
"""Numbers B·n·W from which on norms and GELUs are computed again: below, a layer keeps less than 16 MB in float32."""


class Attention(nn.Module):
    """Causal multi-head attention with heads of `head_dim` channels.

    `rotation`, cos and sin (n, K/2) of `rotary.rotation_table`, turns queries and keys before they are kept.
    """

    def __init__(self, width: int, head_dim: int, **made: Any) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(width, **made)
        self.qkv = nn.Linear(width, 3 * width, **made)
        self.out = nn.Linear(width, width, **made)

    def forward(
        self,
        x: Tensor,
        *,
        start: int = 0,
        layer: int = 0,
        cache: KVCache | None = None,
        temperature: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        recompute: Recompute = "nothing",
    ) -> Tensor:
        batch, count, width = x.shape
        # (B, n, 3W)
        qkv = norm_linear(self.norm, self.qkv, x) if recompute == "elementwise" else self.qkv(self.norm(x))
        # In this order the gradients of q, k and v lie in memory as qkv does, and are put together in one copy.
        heads = (batch, count, width // self.head_dim, self.head_dim)
        q, k, v = (part.view(heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))  # (B, H, n, K)
        if rotation is not None:  # of both at once
            both = qkv[..., : 2 * width].view(batch, count, 2 * width // self.head_dim, self.head_dim).transpose(1, 2)
            q, k = rotated(both, rotation).chunk(2, dim=1)
        if temperature is not None:
            q = q / temperature.to(q.dtype).view(batch, 1, 1, 1)  # the logits are linear in the queries
        if cache is not None:
            k, v = cache.write(layer, start, k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)
        x = _causal_attention(q, k, v)  # (B, H, n, K)
        return self.out(x.transpose(1, 2).reshape(batch, count, width))


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√K) v, where the n queries are those of the last keys: each sees its own and all before."""
    count, length = q.shape[2], k.shape[2]
    if count == 1:
        return F.scaled_dot_product_attention(q, k, v)
    if count == length and count > CPU_QUERIES and q.device.type == "cpu":
        ends = [*range(CPU_QUERIES, count, CPU_QUERIES), count]
        chunks = zip(q.split(CPU_QUERIES, dim=2), ends, strict=True)
        parts = [_causal_attention(part, k[:, :, :end], v[:, :, :end]) for part, end in chunks]
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)  # (B, n, H, K) in memory
    if count == length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # `is_causal` aligns its triangle to the upper left, which for a window would hide the prefix.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_window_mask(count, length, q.device))


def _window_mask(count: int, length: int, device: torch.device) -> Tensor:
    """What the last `count` of `length` positions may see: themselves and all before."""
    if device.type == "cpu":
        return torch.ones(count, length, device=device, dtype=torch.bool).tril(length - count)
    # For CUDA's flash kernels, which take no other mask. Importing it imports torch's compiler: five seconds.
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(count, length)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)). `made` is the device and the dtype of the weights."""

    def __init__(self, width: int, head_dim: int, expansion: int, **made: Any) -> None:
        super().__init__()
        self.attention = Attention(width, head_dim, **made)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, **made),
            nn.Linear(width, expansion * width, **made),
            nn.GELU(),
            nn.Linear(expansion * width, width, **made),
        )

    def forward(
        self,
        x: Tensor,
        *,
        start: int = 0,
        layer: int = 0,
        cache: KVCache | None = None,
        temperature: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        recompute: Recompute = "nothing",
    ) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W); `recompute` says what the backward pass computes again, see config."""
        if torch.compiler.is_compiling():
            recompute = "nothing"  # a compiler that sees both passes decides for itself what is cheap to compute again
        if recompute == "elementwise" and x.numel() < WORTH_FORGETTING:
            recompute = "nothing"
        options = {"start": start, "layer": layer, "cache": cache, "temperature": temperature, "rotation": rotation}
        x = x + self.attention(x, **options, recompute=recompute)
        if recompute == "elementwise":
            norm, linear_in, _, linear_out = cast("tuple[nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]", self.mlp)
            return x + gelu_linear(linear_out, norm_linear(norm, linear_in, x))
        return x + self.mlp(x)
