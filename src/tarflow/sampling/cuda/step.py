"""The conditioner of a single patch on a GPU, at a place that only the device knows: what a CUDA graph can record.

A graph is recorded once and replayed for every patch, so nothing in it may be an integer of the host: the place of the
patch is a tensor. And what a replay costs is mostly the number of its kernels, some seventy small ones, each waiting
for the one before it. `DeviceStep` is the same function of the same weights and the same cache as `Block.conditioner`,
written in as few of them as can be: 8 a layer where Triton is there (`kernels`), 11 in torch alone. What depends on the
place alone is made once a step, and the labels are in a buffer, so that the same graph serves the next batch.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.model.block import Block
from tarflow.model.context import Context
from tarflow.model.rotary import rotated
from tarflow.sampling.cpu.step import is_plain_block

LENGTHS = 8  # stretches of a sequence: a mean cost of 9/16 of the whole cache instead of 1/2, for 8 captures a block
SHORTEST = 32  # patches of a stretch; a capture costs about as much as ten steps without one
ALIGNED = 16  # places of the cache: kernels of attention would copy a mask of another length in every layer


def kernels_for(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """`tarflow.sampling.cuda.kernels`, where it runs on the device, on weights of the dtype."""
    narrow = dtype in (torch.float32, torch.bfloat16, torch.float16)
    if device.type != "cuda" or not narrow or importlib.util.find_spec("triton") is None:
        return None
    from tarflow.sampling.cuda import kernels

    return kernels


class DeviceStep:
    """The parameters of patch i+1 from patch i and a cache of those before; i is a tensor on the device.

    Args:
        block: its weights are not written to. `fits` says whether it may be used at all.
        context: what `Block.context` returned, of R rows or one, or None: copied, and replaced by `begin`.
        store: (layers, 2, R, H, P+T, K), keys and values; those of the given patches, and of a prefix of P tokens, are
            written to it.
        temperature: (R,), attention logits are divided by it; None divides by nothing.
    """

    def __init__(self, block: Block, context: Context | None, store: Tensor, temperature: Tensor | None = None) -> None:
        self.block, self.store, self.prefix = block, store, block.conditions.places
        self.kernels = kernels_for(store.device, store.dtype)
        added = None if context is None else context.added
        self.context = None if added is None else added.clone()  # (R or 1, 1 or S, W)
        self.scale = None if temperature is None else 1 / temperature
        self.entry = block.places() + block.proj_in.bias  # (S, W), in the block's own order
        self.rotation = block.rotation()
        self.places = torch.arange(store.shape[4], dtype=torch.int64, device=store.device)
        self.hidden = torch.tensor([0.0, float("-inf")], dtype=store.dtype, device=store.device)
        self.layers = [
            (layer.attention, *cast("tuple[nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]", tuple(layer.mlp)))
            for layer in block.layers
        ]

    @staticmethod
    def fits(block: Block) -> bool:
        """Whether this is what `block.conditioner` computes: plain modules, no gradients, no autocast."""
        busy = torch.is_grad_enabled() or torch.is_autocast_enabled(block.position.device.type)
        return not busy and is_plain_block(block)

    def begin(self, context: Context | None) -> None:
        """Start at the first patch again, with a context of as many rows."""
        if self.kernels is None:
            self.store.zero_()  # a whole stretch is attended to under a mask, and 0·NaN is NaN
        if self.context is not None:
            assert context is not None and context.added is not None
            self.context.copy_(context.added)
        self.write_prefix(context)

    def write_prefix(self, context: Context | None) -> None:
        """Put keys and values of the prefix in front of the cache, where there is one."""
        if self.prefix:
            assert context is not None and context.prefix is not None
            self.store[:, :, :, :, : self.prefix] = context.prefix

    def stretches(self, last: int) -> list[tuple[int, int]]:
        """How many of the patches 0 … last-1 are evaluated with which room: fixed parts of the cache, or none."""
        if self.kernels is not None:
            return [(last, self.store.shape[4])]
        stretch = max(SHORTEST, -(-last // LENGTHS))
        ends = [min(last, first + stretch) for first in range(0, last, stretch)]
        rooms = [min(self.store.shape[4], -(-(self.prefix + end) // ALIGNED) * ALIGNED) for end in ends]
        return [(end - stretch * number, room) for number, (end, room) in enumerate(zip(ends, rooms, strict=True))]

    def __call__(self, x: Tensor, place: Tensor, room: int) -> Tensor:
        """x (R, 1, D), patch `place` (1,) in the block's own order, to the parameters (R, 1, k·D) of the next one.

        No more than the first `room` places of the cache are looked at, of which that of the patch must be one.
        """
        block, rows, dtype = (
            self.block,
            x.shape[0],
            self.block.dtype,
        )  # not len(x), which an exporter would take for fixed
        entry = self.entry.index_select(0, place)[0]  # (W,)
        h = torch.addmm(entry, x.reshape(rows, -1).to(dtype), block.proj_in.weight.t())  # (R, W)
        if self.context is not None:
            shared = self.context.shape[1] == 1
            h = h + (self.context if shared else self.context.index_select(1, place)).squeeze(1)
        rotation = None
        if self.rotation is not None:
            rotation = (self.rotation[0].index_select(0, place), self.rotation[1].index_select(0, place))
        place = place + self.prefix if self.prefix else place  # in the cache
        h = self._masked(h, place, room, rotation) if self.kernels is None else self._filled(h, place, rotation)
        out = block.proj_out(h).unsqueeze(1)
        return out.to(torch.promote_types(dtype, torch.float32))

    def _filled(self, h: Tensor, place: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """The layers, by the kernels that read as much of the cache as is filled; sums are in float32."""
        kernels, dtype = self.kernels, self.store.dtype
        assert kernels is not None
        h = h.float()
        addend: Tensor | None = None
        for (attention, norm, up, _, down), store in zip(self.layers, self.store, strict=True):
            qkv = kernels.product(kernels.add_norm(h, addend, attention.norm, dtype), attention.qkv)  # (R, 3W)
            if rotation is not None:
                heads = qkv.view(len(h), 3 * store.shape[2], 1, store.shape[4])
                turned, values = heads.split([2 * store.shape[2], store.shape[2]], dim=1)
                qkv = torch.cat([rotated(turned, rotation), values], dim=1).flatten(1)
            addend = kernels.product(kernels.attend(qkv, store, place, self.scale), attention.out)
            hidden = kernels.product(kernels.add_norm(h, addend, norm, dtype), up, gelu=True)
            addend = kernels.product(hidden, down)
        assert addend is not None  # a block has a layer at least
        return (h + addend).to(self.block.dtype)

    def _masked(self, h: Tensor, place: Tensor, room: int, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        """The layers, in torch's operations alone."""
        from torch.nn.attention import SDPBackend, sdpa_kernel  # here, because it imports torch's compiler

        rows, masked = (
            h.shape[0],
            [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
        )  # cuDNN's plans each length, for long
        mask = torch.where(self.places[:room] > place, self.hidden[1], self.hidden[0])  # (room,)
        mask = mask.expand(rows, 1, 1, room)
        for (attention, norm, up, _, down), store in zip(self.layers, self.store, strict=True):  # (2, R, H, T, K)
            qkv = attention.qkv(attention.norm(h)).view(rows, 3, store.shape[2], 1, store.shape[4])
            qkv = qkv.transpose(0, 1)  # (3, R, H, 1, K)
            if rotation is not None:
                qkv = torch.cat([rotated(qkv[:2], rotation), qkv[2:]])
            store.index_copy_(3, place, qkv[1:])
            q = qkv[0] if self.scale is None else qkv[0] * self.scale.to(store.dtype).view(-1, 1, 1, 1)
            keys, values = store[:, :, :, :room].unbind()
            with sdpa_kernel(masked):
                seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)  # (R, H, 1, K)
            h = h + attention.out(seen.reshape(rows, -1))
            h = h + down(F.gelu(up(norm(h))))
        return h
