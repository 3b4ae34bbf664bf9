"""The conditioner of a few patches on a CPU, with nothing in it but its products.

Decoding evaluates a block hundreds of times for one patch, or a short window of them, and there the arithmetic is the
smaller part: `Block.conditioner` spends as long again on calling modules, on reshaping, and on products whose one side
is thin. `HostStep` is the same function of the same weights and the same cache, written out: equal up to rounding, and
without gradients. In float32, and where a C compiler is found, `native` does the same in one call.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.model.block import Block
from tarflow.model.cache import KVCache
from tarflow.model.context import Context
from tarflow.model.order import Padded
from tarflow.model.rotary import rotated
from tarflow.model.transformer import Attention, Layer
from tarflow.sampling.cpu.native import NativeBlock, library
from tarflow.sampling.narrow import NarrowNorm

# Rows below which weights are kept in blocks of columns. Products so thin are bound by how weights come in, and a block
# comes in as one run of memory: with MKL on AVX2, and weights from beyond the second cache, 3 times as fast as x·Wᵀ at
# one row, 1.3 times at 16, and no faster from here on. Not a matter of correctness, so no more than a constant.
THIN = 128


class HostStep:
    """The parameters of patches start+1 … start+n from patches start … start+n-1 and a cache of those before.

    Made for one decoding of one block, as the cache is: the little that it computes ahead is of the weights of that
    moment. `fits` says whether it may be used at all.

    Args:
        block: its weights are not written to.
        context: what `Block.context` returned, of B rows or one, or None.
        cache: keys and values of the patches before; those of the given patches are written to it.
        temperature: (B,), attention logits are divided by it; None divides by nothing.
    """

    def __init__(
        self, block: Block, context: Context | None, cache: KVCache, temperature: Tensor | None = None
    ) -> None:
        self.dtype = block.dtype
        self.scale = None if temperature is None else (1 / temperature).to(block.dtype).view(-1, 1, 1, 1)
        places = block.places()  # (S, W), in the block's own order
        entry = places + block.proj_in.bias
        entry = entry if context is None or context.added is None else entry + context.added
        self.prefix = cache.prefix
        cache.begin(None if context is None else context.prefix)
        self.entry = entry.expand(cache.store.shape[2], -1, -1)  # (B, S, W): what does not depend on x
        compiled = library() if self.dtype == torch.float32 else None
        self.native = None if compiled is None else NativeBlock(compiled, block, self.entry, cache, self.scale)
        self.into, self.proj_out = block.proj_in.weight.t().contiguous(), block.proj_out
        layers = block.layers
        self.rotation = block.rotation()
        self.layers = [_LayerStep(layer, store) for layer, store in zip(layers, cache.store, strict=True)]

    @staticmethod
    def fits(block: Block, cache: KVCache) -> bool:
        """Whether this is what `block.conditioner` computes: on a CPU, plain modules, one wide dtype, no gradients."""
        dtypes = {cache.store.dtype, *(parameter.dtype for parameter in block.parameters())}
        return (
            cache.store.device.type == block.position.device.type == "cpu"
            and len(dtypes) == 1
            and dtypes <= {torch.float32, torch.float64}
            and not (block.config.rotary and isinstance(block.order, Padded))  # angles are those of all rows
            and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
            and is_plain_block(block)
        )

    def __call__(self, x: Tensor, start: int) -> Tensor:
        """x (B, n, D), patches start … start+n-1 in the block's own order, to parameters (B, n, k·D)."""
        batch, count, size = x.shape
        if self.native is not None:
            return self.native(x.to(self.dtype), start)
        entry = self.entry[:, start : start + count]
        h = torch.addmm(entry.reshape(batch * count, -1), x.reshape(-1, size).to(self.dtype), self.into)  # (B·n, W)
        mask, place = None, self.prefix + start
        if count > 1 and place > 0:  # query j sees keys 0 … place+j
            mask = torch.ones(count, place + count, device="cpu", dtype=torch.bool).tril_(diagonal=place)
        rotation = None
        if self.rotation is not None:
            rotation = (self.rotation[0][start : start + count], self.rotation[1][start : start + count])
        for layer in self.layers:
            layer(h, batch, place, self.scale, mask, rotation)
        return F.linear(h, self.proj_out.weight, self.proj_out.bias).view(batch, count, -1)


class _LayerStep:
    """One layer of the Transformer, for few rows."""

    def __init__(self, layer: Layer, store: Tensor) -> None:
        attention = layer.attention
        mlp_norm, up, _, down = cast("tuple[nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]", tuple(layer.mlp))
        self.store, self.keys, self.values = store, store[0], store[1]  # (2, B, H, T, K)
        self.heads, self.head_dim = store.shape[2], store.shape[4]
        self.attention_norm, self.mlp_norm = attention.norm, mlp_norm
        self.qkv, self.attended = Product(attention.qkv, self.head_dim), Product(attention.out, self.head_dim)
        self.up, self.down = Product(up, self.head_dim), Product(down, self.head_dim)

    def __call__(
        self,
        h: Tensor,
        batch: int,
        place: int,
        scale: Tensor | None,
        mask: Tensor | None,
        rotation: tuple[Tensor, Tensor] | None,
    ) -> None:
        """h (B·n, W) is written to, and so are places `place` … place+n-1 of the cache, the first of which is 0."""
        rows, width = h.shape
        count, heads, size = rows // batch, self.heads, self.head_dim
        end = place + count
        blocks = h.view(rows, heads, size).transpose(0, 1)  # (H, B·n, K), in the same memory
        qkv = self.qkv(_norm(self.attention_norm, h)).view(3, heads, batch, count, size)
        if rotation is not None:
            qkv = torch.cat([rotated(qkv[:2], rotation), qkv[2:]])
        self.store.narrow(3, place, count).copy_(qkv[1:].transpose(1, 2))  # (2, B, H, n, K)
        q = qkv[0].transpose(0, 1)  # (B, H, n, K)
        if scale is not None:
            q = q * scale
        keys, values = self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)
        causal = mask is None and count > 1
        seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)  # (B, H, n, K)
        blocks += self.attended(seen.transpose(1, 2).reshape(rows, width))
        inner = F.gelu(self.up(_norm(self.mlp_norm, h)))
        blocks += self.down(inner.transpose(0, 1).reshape(rows, -1))


class Product:
    """x (rows, K) to x Wᵀ + b in blocks of columns: (N/size, rows, size), contiguous."""

    def __init__(self, linear: nn.Linear, size: int) -> None:
        self.weight, self.bias, self.count, self.size = linear.weight, linear.bias, linear.out_features // size, size
        self.blocks: Tensor | None = None  # (N/size, K, size)

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) >= THIN:
            out = F.linear(x, self.weight, self.bias)
            return out.view(-1, self.count, self.size).transpose(0, 1).contiguous()
        if self.blocks is None:
            self.blocks = self.weight.view(self.count, self.size, -1).transpose(1, 2).contiguous()
            self.bias_blocks = self.bias.view(self.count, 1, self.size)
        return torch.baddbmm(self.bias_blocks, x.expand(self.count, -1, -1), self.blocks)


def _norm(norm: nn.LayerNorm, h: Tensor) -> Tensor:
    return torch.layer_norm(h, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


PLAIN = (NarrowNorm, Block, Layer, Attention, nn.ModuleList, nn.Sequential, nn.Linear, nn.LayerNorm, nn.GELU)


def is_plain(module: nn.Module) -> bool:
    """Whether a module of a block computes what its class says: not replaced, and with no hooks on it."""
    known = type(module) in PLAIN and not (isinstance(module, nn.GELU) and module.approximate != "none")
    return known and not (module._forward_hooks or module._forward_pre_hooks)


def is_plain_block(block: Block) -> bool:
    """Whether all that the conditioner calls is plain; what makes its context, and is around it, may be anything."""
    parts = (part for part in (block.transform, block.mixing, block.embedding) if part is not None)
    others = {module for part in parts for module in part.modules()}
    return all(is_plain(module) for module in block.modules() if module not in others)
