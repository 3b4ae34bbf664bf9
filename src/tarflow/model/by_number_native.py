"""`native/by_number.c`: the D small steps by which the numbers of tokens are decoded, all in one call.

It is for float32 on a CPU, without gradients, around the transforms of this library.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tarflow.model.spline import Spline
from tarflow.model.spline_native import NativeSpline, SplineStruct, are_plain
from tarflow.model.transform import Additive, Affine, Rule, Transform
from tarflow.native.compile import Function, Number, Pointer, compiled

PARALLEL = 1 << 16  # products from which on threads are worth waking


class _ByNumber(ctypes.Structure):
    """by_number_t of by_number.c."""

    _fields_ = (
        ("one", SplineStruct),
        *((name, Number) for name in ("rows", "dim", "hidden", "kinds")),
        *((name, Pointer) for name in ("ends", "into", "out")),
        ("stable", Number),
    )


FUNCTIONS = (
    Function("tarflow_lanes", (), Number),
    Function("tarflow_by_number_inverse", (ctypes.POINTER(_ByNumber), *[Pointer] * 6, ctypes.c_int)),
)


def fits(inner: Transform, *tensors: Tensor) -> bool:
    """Whether numbers of the transform `inner` can be decoded there, from these tensors and no gradient wanted."""
    known = type(inner) in (Affine, Additive, Spline)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return known and not wanted and are_plain(*tensors) and compiled("by_number", FUNCTIONS) is not None


def inverse(
    inner: Transform,
    into: Tensor,
    out: Tensor,
    ends: Sequence[int],
    z: Tensor,
    branches: Sequence[Tensor],
    strength: Tensor | float = 0.0,
    rule: Rule = "paper",
) -> Tensor:
    """z (…, D) to x (…, D) by the parameters (…, k·D + H) of one branch, or of two with the strength of guidance."""
    *shape, dim = z.shape
    kinds, hidden, rows = len(out), len(into), math.prod(shape)
    # C looks at no shape: what does not fit would be read from, and written to, memory of somebody else.
    assert into.shape == (hidden, dim) and out.shape == (kinds, dim, hidden) and len(ends) == dim
    assert all(branch.shape == (*shape, kinds * dim + hidden) for branch in branches)
    library = compiled("by_number", FUNCTIONS)
    assert library is not None
    lanes = library.tarflow_lanes()
    kept = [t.contiguous() for t in (into, out, z, *branches)]
    guided = len(branches) == 2
    if guided:
        kept.append(torch.as_tensor(strength, dtype=z.dtype, device=z.device).expand(*shape, 1).contiguous())
    places = (Number * dim)(*ends)
    native = inner.native if isinstance(inner, Spline) else NativeSpline(0, 1.0, inner.bound, 0.0)
    structure = _ByNumber(
        native.struct(1, lanes),
        *(rows, dim, hidden, kinds),
        *(ctypes.addressof(places), kept[0].data_ptr(), kept[1].data_ptr()),
        rule == "stable",
    )
    threads = torch.get_num_threads() if rows * dim * kinds * hidden >= PARALLEL else 1
    scratch = torch.empty(threads * (2 * (hidden + kinds) + dim + 1) * lanes, device="cpu", dtype=torch.float32)
    x = torch.empty_like(kept[2])
    others = [t.data_ptr() for t in kept[3:]] + [None] * (0 if guided else 2)
    pointers = (kept[2].data_ptr(), *others, x.data_ptr(), scratch.data_ptr())
    library.tarflow_by_number_inverse(structure, *pointers, threads)
    return x
