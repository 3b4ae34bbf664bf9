"""The causal Transformer: pre-norm layers of multi-head attention and a GELU MLP.

No mask is stored. Queries of patches start … start+n-1 see keys 0 … their own position, which is one of four cases:
the whole sequence (`is_causal`), a single query (no mask), a window (lower-right causality), and a window whose start
is a device tensor (an additive mask over the whole cache).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from tarflow.model.cache import KVCache


class Attention(nn.Module):
    """Causal multi-head attention with heads of `head_dim` channels."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        *,
        start: int | Tensor = 0,
        layer: int = 0,
        cache: KVCache | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, count, 3, width // self.head_dim, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 of (B, H, n, K)
        if temperature is not None:
            q = q / temperature.to(q.dtype).view(batch, 1, 1, 1)  # the logits are linear in the queries
        if cache is not None:
            k, v = cache.write(layer, start, k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)
        x = _causal_attention(q, k, v, start)  # (B, H, n, K)
        return self.out(x.transpose(1, 2).reshape(batch, count, width))


def _causal_attention(q: Tensor, k: Tensor, v: Tensor, start: int | Tensor) -> Tensor:
    """softmax(q kᵀ/√K) v, where query j of the n given ones sees keys 0 … start+j."""
    count, length = q.shape[2], k.shape[2]
    if isinstance(start, Tensor):
        reach = start + torch.arange(count, device=q.device)
        hidden = torch.arange(length, device=q.device) > reach.unsqueeze(1)  # (n, length)
        mask = torch.zeros(count, length, dtype=q.dtype, device=q.device).masked_fill_(hidden, float("-inf"))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if count == 1:
        return F.scaled_dot_product_attention(q, k, v)
    if count == length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # `is_causal` aligns its triangle to the upper left, which for a window would hide the prefix.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(count, length))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, head_dim: int, expansion: int) -> None:
        super().__init__()
        self.attention = Attention(width, head_dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width),
            nn.GELU(),
            nn.Linear(expansion * width, width),
        )

    def forward(
        self,
        x: Tensor,
        *,
        start: int | Tensor = 0,
        layer: int = 0,
        cache: KVCache | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        x = x + self.attention(x, start=start, layer=layer, cache=cache, temperature=temperature)
        return x + self.mlp(x)
