"""What torch has no kernel for, in Triton: attention of one patch over the filled part of a cache, and sum-and-norm.

Attention of a single query over a masked stretch of a cache was six tenths of a captured step: torch's kernels that
take a mask give a sequence's head to one block of threads, in tiles of 64 queries of which 63 are not there. Here the
length is read on the device, so that nothing behind it is touched, and the new key and value are stored on the way.

Triton comes with torch's builds for CUDA, and only they import this module (`device_step.kernels_for`). All is computed
in float32.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

FEW = 264  # programs below which each gets more threads: two for each multiprocessor of a large GPU


def attend(qkv: Tensor, store: Tensor, place: Tensor, scale: Tensor | None) -> Tensor:
    """softmax(q·kᵀ·scale/√K)·v of one patch over itself and all before, whose keys and values are in `store`.

    Args:
        qkv: (R, 3·H·K), contiguous. store: (2, R, H, T, K), contiguous; those of this patch are written to it.
        place: (1,) int64, the number of the patch. scale: (R,) float32, or None for ones.

    Returns:
        (R, H·K), in the dtype of qkv.
    """
    rows, heads, length, size = store.shape[1:]
    out = torch.empty(rows, heads * size, dtype=qkv.dtype, device=qkv.device)
    few = rows * heads < FEW
    _attend[(rows, heads)](
        qkv,
        store,
        place,
        place if scale is None else scale,
        out,
        1 / math.sqrt(size),
        length,
        store.stride(0),
        HEADS=heads,
        SIZE=size,
        LANES=triton.next_power_of_2(size),
        BLOCK=128 if few else 64,
        SCALED=scale is not None,
        num_warps=8 if few else 4,
    )
    return out


def add_norm(h: Tensor, addend: Tensor | None, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    """h ← h + addend, in place, and the layer norm of that.

    Args:
        h: (R, W) float32, contiguous. addend: (R, W), contiguous, or None for 0.

    Returns:
        (R, W) in `dtype`.
    """
    rows, width = h.shape
    out = torch.empty(rows, width, dtype=dtype, device=h.device)
    _add_norm[(rows,)](
        h,
        h if addend is None else addend,
        norm.weight,
        norm.bias,
        out,
        norm.eps,
        width,
        LANES=triton.next_power_of_2(width),
        ADDS=addend is not None,
        num_warps=4,
    )
    return out


@triton.jit
def _attend(
    qkv,
    store,
    place,
    scale,
    out,
    root,
    length,
    values_after,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One head of one sequence: the softmax is kept up to date block by block (arXiv 1805.02867)."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    here = tl.load(place).to(tl.int32)
    lane = tl.arange(0, LANES)
    inside = lane < SIZE
    own = qkv + (row * 3 * HEADS + head) * SIZE + lane
    q = tl.load(own, mask=inside, other=0.0).to(tl.float32) * root
    if SCALED:
        q *= tl.load(scale + row)
    key = tl.load(own + HEADS * SIZE, mask=inside, other=0.0)
    value = tl.load(own + 2 * HEADS * SIZE, mask=inside, other=0.0)
    keys = store + (row.to(tl.int64) * HEADS + head) * length * SIZE + lane
    values = keys + values_after
    tl.store(keys + here * SIZE, key, mask=inside)
    tl.store(values + here * SIZE, value, mask=inside)
    most = tl.sum(q * key.to(tl.float32))  # the patch itself comes first
    total = 1.0
    seen = value.to(tl.float32)
    for start in range(0, here, BLOCK):
        places = start + tl.arange(0, BLOCK)
        before = places < here
        inner = before[:, None] & inside[None, :]
        k = tl.load(keys[None, :] + places[:, None] * SIZE, mask=inner, other=0.0).to(tl.float32)
        v = tl.load(values[None, :] + places[:, None] * SIZE, mask=inner, other=0.0).to(tl.float32)
        logits = tl.where(before, tl.sum(k * q[None, :], axis=1), float("-inf"))
        larger = tl.maximum(most, tl.max(logits, axis=0))
        kept = tl.exp(most - larger)
        weights = tl.exp(logits - larger)
        total = total * kept + tl.sum(weights, axis=0)
        seen = seen * kept + tl.sum(weights[:, None] * v, axis=0)
        most = larger
    tl.store(out + (row * HEADS + head) * SIZE + lane, (seen / total).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_norm(
    h,
    addend,
    weight,
    bias,
    out,
    eps,
    width,
    LANES: tl.constexpr,
    ADDS: tl.constexpr,
):
    row = tl.program_id(0)
    lane = tl.arange(0, LANES)
    inside = lane < width
    x = tl.load(h + row * width + lane, mask=inside, other=0.0)
    if ADDS:
        x += tl.load(addend + row * width + lane, mask=inside, other=0.0).to(tl.float32)
        tl.store(h + row * width + lane, x, mask=inside)
    mean = tl.sum(x) / width
    centred = tl.where(inside, x - mean, 0.0)
    deviation = tl.rsqrt(tl.sum(centred * centred) / width + eps)
    scaled = centred * deviation * tl.load(weight + lane, mask=inside, other=0.0).to(tl.float32)
    result = scaled + tl.load(bias + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + lane, result.to(out.dtype.element_ty), mask=inside)
