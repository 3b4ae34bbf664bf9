"""What torch has no good kernel for, in Triton: attention of one patch over what is filled of a cache, thin products.

Attention of a single query over a masked stretch of a cache was six tenths of a captured step: torch's kernels that
take a mask give a sequence's head to one block of threads, in tiles of 64 queries of which 63 are not there. Here the
length is read on the device, so that nothing behind it is touched, and the new key and value are stored on the way.

Triton comes with torch's builds for CUDA, and only they import this module (`step.kernels_for`). All is computed
in float32.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

PARTS = 8  # of a sequence that are attended to side by side: one after the other, a part waits for the memory each time
BLOCK = 64  # patches at once
THIN = (8, 128)  # rows for which `product` has a kernel: from where tensor cores pay, to where cuBLAS is as good


def attend(qkv: Tensor, store: Tensor, place: Tensor, scale: Tensor | None) -> Tensor:
    """softmax(q·kᵀ·scale/√K)·v of one patch over itself and all before, whose keys and values are in `store`.

    The patches before are cut into `PARTS`, which are attended to side by side, and then put together.

    Args:
        qkv: (R, 3·H·K), contiguous. store: (2, R, H, T, K), contiguous; those of this patch are written to it.
        place: (1,) int64, the number of the patch. scale: (R,) float32, or None for ones.

    Returns:
        (R, H·K), in the dtype of qkv.
    """
    rows, heads, length, size = store.shape[1:]
    lanes = triton.next_power_of_2(size)
    seen = torch.empty(rows, heads, PARTS, lanes, dtype=torch.float32, device=qkv.device)
    sums = torch.empty(rows, heads, 2, PARTS, dtype=torch.float32, device=qkv.device)
    out = torch.empty(rows, heads * size, dtype=qkv.dtype, device=qkv.device)
    scaled = {"HEADS": heads, "SIZE": size, "LANES": lanes, "PARTS": PARTS, "SCALED": scale is not None}
    scales = place if scale is None else scale
    root = 1 / math.sqrt(size)
    _attend_part[(rows, heads, PARTS)](
        qkv, store, place, scales, seen, sums, root, length, store.stride(0), **scaled, BLOCK=BLOCK, num_warps=4
    )
    _attend_whole[(rows, heads)](qkv, scales, seen, sums, out, root, **scaled, num_warps=1)
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


def product(x: Tensor, linear: nn.Linear, *, gelu: bool = False) -> Tensor:
    """x Wᵀ + b, (R, K) to (R, N), and the GELU of that where asked.

    For a few dozen rows of float32 cuBLAS takes six times as long as the weights take to arrive. Here each number is
    split into three of TF32, whose products the tensor cores add up to float32's precision (`tf32x3`).
    """
    if x.dtype != torch.float32 or not THIN[0] <= len(x) <= THIN[1]:
        out = linear(x)
        return torch.nn.functional.gelu(out) if gelu else out
    rows, inner = x.shape
    out = torch.empty(rows, linear.out_features, dtype=x.dtype, device=x.device)
    columns = 32 if linear.out_features >= 2048 else 16
    _product[(triton.cdiv(linear.out_features, columns),)](
        x,
        linear.weight,
        linear.bias,
        out,
        rows,
        inner,
        linear.out_features,
        ROWS=max(16, triton.next_power_of_2(rows)),
        COLUMNS=columns,
        INNER=64,
        GELU=gelu,
        num_warps=4,
        num_stages=4,
    )
    return out


@triton.jit
def _product(
    x,
    weight,
    bias,
    out,
    rows,
    inner,
    columns,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    GELU: tl.constexpr,
):
    row = tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, inner, INNER):
        place = start + tl.arange(0, INNER)
        within = place < inner
        a = tl.load(x + row[:, None] * inner + place[None, :], mask=(row < rows)[:, None] & within[None, :], other=0.0)
        b = tl.load(
            weight + column[None, :] * inner + place[:, None],
            mask=(column < columns)[None, :] & within[:, None],
            other=0.0,
        )
        sums = tl.dot(a, b, sums, input_precision="tf32x3")
    sums += tl.load(bias + column, mask=column < columns, other=0.0)[None, :]
    if GELU:
        sums = 0.5 * sums * (1 + tl.erf(sums * 0.7071067811865476))
    target = out + row[:, None] * columns + column[None, :]
    tl.store(target, sums, mask=(row < rows)[:, None] & (column < columns)[None, :])


@triton.jit
def _attend_part(
    qkv,
    store,
    place,
    scale,
    seen,
    sums,
    root,
    length,
    values_after,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    PARTS: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A part of the patches before, for one head of one sequence: the largest logit, and sums relative to it.

    The softmax is kept up to date block by block (arXiv 1805.02867).
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2)
    here = tl.load(place).to(tl.int32)
    lane = tl.arange(0, LANES)
    inside = lane < SIZE
    own = qkv + (row * 3 * HEADS + head) * SIZE + lane
    keys = store + (row.to(tl.int64) * HEADS + head) * length * SIZE + lane
    values = keys + values_after
    if part == 0:
        tl.store(keys + here * SIZE, tl.load(own + HEADS * SIZE, mask=inside, other=0.0), mask=inside)
        tl.store(values + here * SIZE, tl.load(own + 2 * HEADS * SIZE, mask=inside, other=0.0), mask=inside)
    q = tl.load(own, mask=inside, other=0.0).to(tl.float32) * root
    if SCALED:
        q *= tl.load(scale + row)
    share = tl.cdiv(tl.cdiv(here, PARTS), BLOCK) * BLOCK
    end = tl.minimum(here, (part + 1) * share)
    most = float("-inf")
    total = 0.0
    found = tl.zeros([LANES], dtype=tl.float32)
    for start in range(part * share, end, BLOCK):
        places = start + tl.arange(0, BLOCK)
        before = places < end
        inner = before[:, None] & inside[None, :]
        k = tl.load(keys[None, :] + places[:, None] * SIZE, mask=inner, other=0.0).to(tl.float32)
        v = tl.load(values[None, :] + places[:, None] * SIZE, mask=inner, other=0.0).to(tl.float32)
        logits = tl.where(before, tl.sum(k * q[None, :], axis=1), float("-inf"))
        larger = tl.maximum(most, tl.max(logits, axis=0))
        kept = tl.exp(most - larger)
        weights = tl.exp(logits - larger)
        total = total * kept + tl.sum(weights, axis=0)
        found = found * kept + tl.sum(weights[:, None] * v, axis=0)
        most = larger
    index = row * HEADS + head
    tl.store(seen + (index * PARTS + part) * LANES + lane, found)
    tl.store(sums + index * 2 * PARTS + part, most)
    tl.store(sums + index * 2 * PARTS + PARTS + part, total)


@triton.jit
def _attend_whole(
    qkv,
    scale,
    seen,
    sums,
    out,
    root,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    PARTS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """The parts and the patch itself, put together."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    index = row * HEADS + head
    lane = tl.arange(0, LANES)
    inside = lane < SIZE
    own = qkv + (row * 3 * HEADS + head) * SIZE + lane
    q = tl.load(own, mask=inside, other=0.0).to(tl.float32) * root
    if SCALED:
        q *= tl.load(scale + row)
    logit = tl.sum(q * tl.load(own + HEADS * SIZE, mask=inside, other=0.0).to(tl.float32))
    part = tl.arange(0, PARTS)
    most = tl.load(sums + index * 2 * PARTS + part)
    total = tl.load(sums + index * 2 * PARTS + PARTS + part)
    larger = tl.maximum(logit, tl.max(most, axis=0))
    kept = tl.exp(most - larger)  # 0 of a part without patches
    itself = tl.exp(logit - larger)
    parts = tl.load(seen + (index * PARTS + part[:, None]) * LANES + lane[None, :])
    value = tl.load(own + 2 * HEADS * SIZE, mask=inside, other=0.0).to(tl.float32)
    found = tl.sum(kept[:, None] * parts, axis=0) + itself * value
    found /= tl.sum(kept * total, axis=0) + itself
    tl.store(out + index * SIZE + lane, found.to(out.dtype.element_ty), mask=inside)


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
