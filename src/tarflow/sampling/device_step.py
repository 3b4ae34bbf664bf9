"""The conditioner of a single patch on a GPU, at a place that only the device knows: what a CUDA graph can record.

A graph is recorded once and replayed for every patch, so nothing in it may be an integer of the host: the place of the
patch is a tensor. And what a replay costs is mostly the number of its kernels, a hundred small ones, each waiting for
the one before it. `DeviceStep` is the same function of the same weights and the same cache as `Block.conditioner`,
written in as few of them as torch allows: 11 a layer. What depends on the place alone (position, angles, mask) is made
once a step, and the labels are in a buffer, so that the same graph serves the next batch.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.model.block import Block
from tarflow.model.rotary import rotated
from tarflow.model.transformer import Layer
from tarflow.sampling.step import is_plain


class DeviceStep:
    """shift and log_scale of patch i+1 from patch i and a cache of those before; i is a tensor on the device.

    Args:
        block: its weights are not written to. `fits` says whether it may be used at all.
        context: (R, 1, W), (1, 1, W) or None, what `Block.context` returned: copied, and replaced by `begin`.
        store: (layers, 2, R, H, room, K), keys and values; those of the given patches are written to it.
        temperature: (R,), attention logits are divided by it; None divides by nothing.
    """

    def __init__(self, block: Block, context: Tensor | None, store: Tensor, temperature: Tensor | None = None) -> None:
        self.block, self.store, self.affine = block, store, block.config.transform == "affine"
        self.context = None if context is None else context.flatten(0, 1).clone()  # (R, W) or (1, W)
        self.scale = None if temperature is None else (1 / temperature).to(block.dtype).view(-1, 1, 1, 1)
        self.entry = block.reorder(block.position.unsqueeze(0))[0] + block.proj_in.bias  # (T, W), in the block's order
        self.rotation = block.rotation()
        self.places = torch.arange(store.shape[4], dtype=torch.int64, device=store.device)
        self.hidden = torch.tensor([0.0, float("-inf")], dtype=block.dtype, device=store.device)
        self.layers = [
            (layer.attention, *cast("tuple[nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]", tuple(layer.mlp)))
            for layer in cast("list[Layer]", block.layers)
        ]

    @staticmethod
    def fits(block: Block) -> bool:
        """Whether this is what `block.conditioner` computes: plain modules, one dtype, no gradients, no autocast."""
        return (
            len({parameter.dtype for parameter in block.parameters()}) == 1
            and not (torch.is_grad_enabled() or torch.is_autocast_enabled(block.position.device.type))
            and all(map(is_plain, block.modules()))
        )

    def begin(self, context: Tensor | None) -> None:
        """Go on with other labels: what `Block.context` returned of as many."""
        if self.context is not None:
            assert context is not None
            self.context.copy_(context.flatten(0, 1))

    def __call__(self, x: Tensor, place: Tensor, room: int) -> tuple[Tensor, Tensor]:
        """x (R, 1, D), patch `place` (1,) in the block's own order, to shift and log_scale (R, 1, D) of the next one.

        Only the first `room` places of the cache are looked at: `place` must be one of them.
        """
        block, rows, dtype = self.block, len(x), self.block.dtype
        entry = self.entry.index_select(0, place)[0]  # (W,)
        h = torch.addmm(entry, x.reshape(rows, -1).to(dtype), block.proj_in.weight.t())  # (R, W)
        if self.context is not None:
            h = h + self.context
        mask = torch.where(self.places[:room] > place, self.hidden[1], self.hidden[0])  # (room,)
        mask = mask.expand(rows, 1, 1, room)
        rotation = None
        if self.rotation is not None:
            rotation = (self.rotation[0].index_select(0, place), self.rotation[1].index_select(0, place))
        for number, (attention, norm, up, _, down) in enumerate(self.layers):
            store = self.store[number]  # (2, R, H, room, K)
            heads, size = store.shape[2], store.shape[4]
            qkv = attention.qkv(attention.norm(h)).view(rows, 3, heads, 1, size).transpose(0, 1)  # (3, R, H, 1, K)
            q, kv = qkv[0], qkv[1:]
            if rotation is not None:
                turned = rotated(qkv[:2], rotation)
                q, kv = turned[0], torch.stack([turned[1], qkv[2]])
            store.index_copy_(3, place, kv)
            if self.scale is not None:
                q = q * self.scale
            keys, values = store[:, :, :, :room].unbind()
            seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)  # (R, H, 1, K)
            h = h + attention.out(seen.reshape(rows, -1))
            h = h + down(F.gelu(up(norm(h))))
        out = block.proj_out(h).unsqueeze(1)
        out = out.to(torch.promote_types(dtype, torch.float32))  # (R, 1, O)
        if not self.affine:
            return out, out.new_zeros(()).expand_as(out)
        log_scale, shift = out.chunk(2, dim=-1)
        return shift, log_scale
