"""Compilation of the training forward: layer by layer, in place, and of nothing that evaluates or samples."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Literal

import torch

from tarflow.config import ConfigError
from tarflow.model.flow import TarFlow

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


def compile_layers(flow: TarFlow, backend: str = "inductor") -> None:
    """Make `flow` run compiled code for its Transformer layers, forward and backward, from the next call on.

    All layers have the same code, so one compilation serves them all, in seconds; of the whole flow, unrolled, it would
    take minutes and gain the few elementwise operations between the layers. It is done in place and leaves the names of
    the weights alone. Copies of the flow, as the averaged weights are one, are not compiled.
    """
    for block in flow.blocks:
        for layer in block.layers:
            layer.compile(backend=backend, dynamic=False)
