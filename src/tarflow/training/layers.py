"""How the Transformer layers of a flow run in training: compiled, and with what is cheap computed again.

Both are put on the layers from outside: the model knows nothing of it. Neither is for what evaluates or samples.

Computing again in the backward pass what would otherwise be kept from the forward pass gives the same bits with less
memory. A layer keeps 16 widths a token: its input, norm, queries, keys and values (3), what attention gives, the sum,
the second norm, and the hidden layer before and after its GELU (4 each). The norms and what comes out of the GELU are 6
of them, and next to no arithmetic. `norm_linear` and `gelu_linear` keep their input and compute all but the product
again, faster than torch's `checkpoint`, half a millisecond a call. All weights must want gradients, as they do in
training. Backward passes are made of operations that can be differentiated again.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import types
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tarflow.config import ConfigError, Recompute
from tarflow.model.flow import TarFlow
from tarflow.model.sequence import SequenceFlow
from tarflow.model.spline import Spline
from tarflow.model.transformer import Layer

Backend: TypeAlias = Callable[..., Any]
CPP_COMPILERS = ("g++", "clang++", "c++", "cl")


def wants_compilation(choice: Literal["auto", "on", "off"], device: torch.device) -> bool:
    """Whether `choice` means to compile on `device`: "auto" does on CUDA, where Triton is there to do it.

    Raises ConfigError where "on" lacks what writes the code: Triton on CUDA, a C++ compiler on the CPU.
    """
    triton = importlib.util.find_spec("triton") is not None
    if choice == "auto":
        return device.type == "cuda" and triton
    if choice == "off":
        return False
    if device.type == "cuda" and not triton:
        raise ConfigError("compile: on CUDA it needs triton, which is not installed; install it, or give auto or off")
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "", *CPP_COMPILERS))):
        raise ConfigError(
            f"compile: on the CPU it needs a C++ compiler, and none of {', '.join(CPP_COMPILERS)} is there; "
            "install one, name it in CXX, or give auto or off"
        )
    return True


def compile_layers(flow: TarFlow, backend: str | Backend = "inductor") -> None:
    """Make `flow` run compiled code for its Transformer layers, forward and backward, from the next call on.

    All layers have the same code, so one compilation serves them all, in seconds; of the whole flow, unrolled, it would
    take minutes and gain the few elementwise operations between the layers. Only a spline has many of those, forty that
    each read and write its parameters: it is compiled too, but for the CPU, where it is one call of C. It is done in
    place and leaves the names of the weights alone. Copies of the flow, as the averaged weights are one, are not
    compiled.

    What the backward pass computes again is what "elementwise" does, the norms and the GELU (`planning.memory`).
    """
    # Under DDP torch cuts a compiled piece where a bucket of gradients is full, so that sending begins early. A layer
    # is such a piece already, and cut in two it keeps what lies between: the GELU's output, 4 widths of 22.
    torch._dynamo.config.optimize_ddp = False
    compiler = _keeping_little(torch._dynamo.lookup_backend(backend) if isinstance(backend, str) else backend)
    for block in flow.blocks:
        splines = [part for part in block.transform.modules() if isinstance(part, Spline)]
        for part in (*block.layers, *(splines if flow.device.type != "cpu" else ())):
            part.compile(backend=compiler, dynamic=False)


def _keeping_little(backend: Backend) -> Backend:
    """`backend`, told that what the backward pass reads from memory once may be computed again all the same.

    Without it torch keeps the output of the GELU, which is an input of a product, beside its input.
    """

    def compiler(graph: Any, inputs: Any) -> Any:
        with torch._functorch.config.patch(ban_recompute_materialized_backward=False):
            return backend(graph, inputs)

    return compiler


LEAST_NUMBERS = 1 << 18
"""Numbers B·n·W from which on norms and GELUs are computed again: below, a layer keeps less than 16 MB in float32."""


def recompute_layers(flow: SequenceFlow, recompute: Recompute) -> None:
    """Say what the layers of `flow` compute again in every backward pass from now on; no value changes.

    "elementwise" is norms and GELUs, "layers" all of each layer, of which only the input is kept, and "nothing" takes
    it back. Copies that are made of the flow afterwards do the same.
    """
    for block in flow.blocks:
        for layer in block.layers:
            layer.__dict__.pop("forward", None)
            if recompute != "nothing":
                run = _elementwise if recompute == "elementwise" else _checkpointed
                layer.forward = types.MethodType(run, layer)  # type: ignore[method-assign]


def _checkpointed(layer: Layer, x: Tensor, *rest: Any) -> Tensor:
    """The layer, of which only x is kept."""
    result = checkpoint(Layer.forward, layer, x, *rest, use_reentrant=False, preserve_rng_state=False)  # no randomness
    assert isinstance(result, Tensor)
    return result


def _elementwise(layer: Layer, x: Tensor, *rest: Any) -> Tensor:
    """The layer, whose norms and GELU are computed again; a compiler that sees both passes decides that for itself."""
    if torch.compiler.is_compiling() or x.numel() < LEAST_NUMBERS:
        return Layer.forward(layer, x, *rest)
    attention = layer.attention
    x = x + attention.attend(norm_linear(attention.norm, attention.qkv, x), *rest)
    norm, linear_in, _, linear_out = cast("tuple[nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]", layer.mlp)
    return x + gelu_linear(linear_out, norm_linear(norm, linear_in, x))


def norm_linear(norm: nn.LayerNorm, linear: nn.Linear, x: Tensor) -> Tensor:
    """linear(norm(x)), (…, W) to (…, N), of which x and the mean and deviation of its rows are kept."""
    result = _NormLinear.apply(x, norm.weight, norm.bias, norm.eps, linear.weight, linear.bias)
    assert isinstance(result, Tensor)
    return result


def gelu_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """linear(gelu(x)), (…, W) to (…, N), of which x is kept."""
    result = _GELULinear.apply(x, linear.weight, linear.bias)
    assert isinstance(result, Tensor)
    return result


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, offset: Tensor, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
        a, mean, deviation = torch.native_layer_norm(x, x.shape[-1:], scale, offset, eps)
        ctx.save_for_backward(x, scale, offset, mean, deviation, weight)
        ctx.eps = eps
        return F.linear(a, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset, mean, deviation, weight = ctx.saved_tensors
        a = F.layer_norm(x, x.shape[-1:], scale, offset, ctx.eps)
        of_a, of_weight, of_bias = _linear_backward(grad, a, weight)
        of_x, of_scale, of_offset = torch.ops.aten.native_layer_norm_backward(
            of_a, x, x.shape[-1:], mean, deviation, scale, offset, [True, True, True]
        )
        return of_x, of_scale, of_offset, None, of_weight, of_bias


class _GELULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_a, of_weight, of_bias = _linear_backward(grad, F.gelu(x), weight)
        return torch.ops.aten.gelu_backward(of_a, x), of_weight, of_bias


def _linear_backward(grad: Tensor, a: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of y = a Wᵀ + b: da = dy W, dW = dyᵀ a, db = Σ dy.

    Under autocast y is narrow, and so were the factors of its product: they are here, too.
    """
    rows = grad.flatten(0, -2)
    of_a = (rows @ weight.to(grad.dtype)).view_as(a).to(a.dtype)
    return of_a, rows.t() @ a.to(grad.dtype).flatten(0, -2), rows.sum(dim=0)
