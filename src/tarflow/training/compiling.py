"""Compilation of the training forward: layer by layer, in place, and of nothing that evaluates or samples."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch

from tarflow.config import ConfigError
from tarflow.model.flow import TarFlow

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
    take minutes and gain the few elementwise operations between the layers. It is done in place and leaves the names of
    the weights alone. Copies of the flow, as the averaged weights are one, are not compiled.

    What the backward pass computes again is what "elementwise" does, the norms and the GELU (`planning.memory`).
    """
    # Under DDP torch cuts a compiled piece where a bucket of gradients is full, so that sending begins early. A layer
    # is such a piece already, and cut in two it keeps what lies between: the GELU's output, 4 widths of 22.
    torch._dynamo.config.optimize_ddp = False
    compiler = _keeping_little(torch._dynamo.lookup_backend(backend) if isinstance(backend, str) else backend)
    for block in flow.blocks:
        for layer in block.layers:
            layer.compile(backend=compiler, dynamic=False)


def _keeping_little(backend: Backend) -> Backend:
    """`backend`, told that what the backward pass reads from memory once may be computed again all the same.

    Without it torch keeps the output of the GELU, which is an input of a product, beside its input.
    """

    def compiler(graph: Any, inputs: Any) -> Any:
        with torch._functorch.config.patch(ban_recompute_materialized_backward=False):
            return backend(graph, inputs)

    return compiler
