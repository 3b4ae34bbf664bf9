"""`native/spline.c`: a spline and the affine map after it, forward, backward and inverse, each in one call.

It is for float32 on a CPU, where the operations of `rational_quadratic` write and read what they make of the parameters
some forty times. The backward pass computes again what it needs, so that nothing is kept but x and the parameters.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from tarflow.model.rational_quadratic import LEAST_SHARE, STEEPEST
from tarflow.native.compile import Function, Number, Pointer, compiled

PARALLEL = 1 << 13  # numbers from which on threads are worth waking

Reference = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SplineStruct(ctypes.Structure):
    """spline_t of spline.h."""

    _fields_ = (
        *((name, Number) for name in ("rows", "dim", "bins")),
        *((name, ctypes.c_float) for name in ("interval", "bound", "largest", "least", "steepest")),
    )


FUNCTIONS = tuple(
    Function(f"tarflow_spline_{name}", (ctypes.POINTER(SplineStruct), *[Pointer] * tensors, ctypes.c_int))
    for name, tensors in (("forward", 4), ("inverse", 3), ("backward", 6))
)


def are_plain(*tensors: Tensor) -> bool:
    """Whether these are numbers of float32 on a CPU, and nobody asks for the operations that they go through."""
    kinds = (Tensor, torch.nn.Parameter)
    if not all(type(t) in kinds and t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors):
        return False
    watched = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    watched = watched or torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack() > 0
    return not watched and all(unpack_dual(t).tangent is None for t in tensors)  # forward mode


@dataclass(frozen=True)
class NativeSpline:
    """The compiled code for splines of so many bins of [-interval, interval], and a bound of the log-scale.

    Args:
        largest: where log-scales that no bound keeps from it are cut off.
    """

    bins: int
    interval: float
    bound: float | None
    largest: float

    def fits(self, x: Tensor, params: Tensor) -> bool:
        """Whether these are numbers of float32 on a CPU, and nobody asks for the operations that they go through."""
        return are_plain(x, params) and compiled("spline", FUNCTIONS) is not None

    def struct(self, rows: int, dim: int) -> SplineStruct:
        """What C is told of so many tokens of so many numbers."""
        largest = self.largest if self.bound is None or self.bound > self.largest else 0.0
        return SplineStruct(rows, dim, self.bins, self.interval, self.bound or 0.0, largest, LEAST_SHARE, STEEPEST)

    def forward(self, x: Tensor, params: Tensor, reference: Reference) -> tuple[Tensor, Tensor]:
        """x (…, D) and params (…, (3·bins+1)·D) to z (…, D) and ladj (…); `reference` has the second derivatives."""
        z, ladj = _Forward.apply(x, params, self, reference)
        return z, ladj

    def inverse(self, z: Tensor, params: Tensor) -> Tensor:
        """z (…, D) to x (…, D), without gradients."""
        x = torch.empty_like(z, memory_format=torch.contiguous_format)
        self.call("inverse", z, params, x)
        return x

    def call(self, name: str, x: Tensor, params: Tensor, *others: Tensor) -> None:
        """Call a function of `spline.c` on tensors, each of which it reads or fills."""
        *rows, dim = x.shape
        # C looks at no shape: what does not fit would be read from, and written to, memory of somebody else.
        assert params.shape == (*rows, (3 * self.bins + 1) * dim), (x.shape, params.shape)
        assert all(t.numel() in (math.prod(rows), x.numel(), params.numel()) for t in others)
        tensors = [x.contiguous(), params.contiguous(), *others]
        threads = torch.get_num_threads() if x.numel() >= PARALLEL else 1
        library = compiled("spline", FUNCTIONS)
        getattr(library, f"tarflow_spline_{name}")(
            self.struct(math.prod(rows), dim), *(t.data_ptr() for t in tensors), threads
        )


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, params: Tensor, native: NativeSpline, reference: Reference
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, params)
        ctx.native, ctx.reference = native, reference
        z, ladj = torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.shape[:-1])
        native.call("forward", x, params, z, ladj)
        return z, ladj

    @staticmethod
    def backward(ctx: Any, by_z: Tensor, by_ladj: Tensor) -> tuple[Tensor | None, ...]:
        x, params = ctx.saved_tensors
        if torch.is_grad_enabled():  # what comes back will be differentiated again
            wanted = [t for t, needed in zip((x, params), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(ctx.reference(x, params), wanted, (by_z, by_ladj), create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None
        by_x, by_params = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, params))
        ctx.native.call("backward", x, params, by_z.contiguous(), by_ladj.contiguous(), by_x, by_params)
        return by_x, by_params, None, None
