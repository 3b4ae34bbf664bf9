"""The causal Transformer: pre-norm layers of multi-head attention and a GELU MLP.

No mask is stored. Queries of patches start … start+n-1 see keys 0 … their own position, which is one of three cases:
the whole sequence (`is_causal`), a single query (no mask), a window or what is behind a prefix (lower-right causality).
The tokens of a prefix see each other both ways (no mask).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.model.cache import Memory
from tarflow.model.rotary import Rotation, rotated

CPU_QUERIES = 128
"""Queries that the CPU's attention takes at a time: its kernel computes what causality hides, and so less is hidden."""


class Attention(nn.Module):
    """Causal multi-head attention with heads of `head_dim` channels.

    Args:
        rotation: cos and sin (n, K/2), by which queries and keys are turned before they are kept.
        memory: where keys and values are written, and those of the tokens before are read. It says whether attention is
            causal; without one it is.
        temperature: (B,), attention logits are divided by it.
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
        rotation: Rotation | None = None,
        memory: Memory | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        return self.attend(self.qkv(self.norm(x)), rotation, memory, temperature)

    def attend(
        self, qkv: Tensor, rotation: Rotation | None, memory: Memory | None, temperature: Tensor | None
    ) -> Tensor:
        """Queries, keys and values (B, n, 3W) to what is added to the tokens, (B, n, W)."""
        batch, count, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        # In this order the gradients of q, k and v lie in memory as qkv does, and are put together in one copy.
        heads = (batch, count, width // self.head_dim, self.head_dim)
        q, k, v = (part.view(heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))  # (B, H, n, K)
        if rotation is not None:  # of both at once
            both = qkv[..., : 2 * width].view(batch, count, 2 * width // self.head_dim, self.head_dim).transpose(1, 2)
            q, k = rotated(both, rotation).chunk(2, dim=1)
        if temperature is not None:
            q = q / temperature.to(q.dtype).view(batch, 1, 1, 1)  # the logits are linear in the queries
        if memory is not None:
            k, v = memory.write(k, v)
            k, v = k.to(q.dtype), v.to(q.dtype)
        causal = memory is None or memory.causal
        x = _causal_attention(q, k, v) if causal else F.scaled_dot_product_attention(q, k, v)  # (B, H, n, K)
        return self.out(x.transpose(1, 2).reshape(batch, count, width))


def _causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√K) v, where the n queries are those of the last keys: each sees its own and all before."""
    count, length = q.shape[2], k.shape[2]
    if count == 1:
        return F.scaled_dot_product_attention(q, k, v)
    if count > CPU_QUERIES and q.device.type == "cpu":
        ends = [length - count + end for end in (*range(CPU_QUERIES, count, CPU_QUERIES), count)]
        chunks = zip(q.split(CPU_QUERIES, dim=2), ends, strict=True)
        parts = [_causal_attention(part, k[:, :, :end], v[:, :, :end]) for part, end in chunks]
        return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)  # (B, n, H, K) in memory
    if count == length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # `is_causal` aligns its triangle to the upper left, which for a window would hide the prefix.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_window_mask(count, length, q.device))


def _window_mask(count: int, length: int, device: torch.device) -> Tensor:
    """What the last `count` of `length` positions may see: themselves and all before."""
    if device.type == "cpu" or torch.compiler.is_compiling():  # which knows no subclass of a tensor made within it
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
        rotation: Rotation | None = None,
        memory: Memory | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, n, W) to tokens (B, n, W); for the other arguments see `Attention`."""
        x = x + self.attention(x, rotation, memory, temperature)
        return x + self.mlp(x)
