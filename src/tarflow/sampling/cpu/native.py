"""`native/step.c`: a step of decoding in one call, for float32 on a CPU.

Called from Python one after the other, PyTorch's operations for one step of 16 images take seven times as long as its
arithmetic at the rate of large products; this takes under three times as long. Where it cannot be compiled, PyTorch's
operations do the same work.
"""

from __future__ import annotations

import ctypes
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.model.block import Block
from tarflow.model.cache import KVCache
from tarflow.model.transformer import Layer
from tarflow.native.compile import Function, Number, Pointer, compiled

PARALLEL = 1 << 20  # bytes of a block's weights from which on threads are worth waking


class _Layer(ctypes.Structure):
    """layer_t of step.c."""

    _fields_ = (
        *((f"{name}_{kind}", Pointer) for name in ("norm1", "qkv", "out") for kind in ("weight", "bias")),
        *((f"{name}_{kind}", Pointer) for name in ("norm2", "up", "down") for kind in ("weight", "bias")),
        *((f"norm{number}_eps", ctypes.c_float) for number in (1, 2)),
    )


class _Block(ctypes.Structure):
    """block_t of step.c."""

    _fields_ = (
        *((name, Number) for name in ("layers", "width", "hidden", "head_dim", "dim", "outputs", "length", "prefix")),
        ("layer", ctypes.POINTER(_Layer)),
        *((name, Pointer) for name in ("in_weight", "proj_weight", "proj_bias", "entry")),
        ("entry_batch", Number),
        *((name, Pointer) for name in ("scale", "cos", "sin", "store")),
        *((f"store_{name}", Number) for name in ("layer", "kind", "batch", "head")),
    )


FUNCTIONS = (
    Function("tarflow_panel", (), ctypes.c_int),
    Function("tarflow_scratch", (ctypes.POINTER(_Block), Number, Number), Number),
    Function("tarflow_step", (ctypes.POINTER(_Block), *[Pointer] * 3, *[Number] * 3, ctypes.c_int)),
)


def library() -> ctypes.CDLL | None:
    """The compiled `step.c`, or None."""
    return compiled("step", FUNCTIONS)


class NativeBlock:
    """One block with its cache, as `step.c` sees it.

    Args:
        library: what `library()` gave.
        block: a block of plain layers in float32; its weights are copied.
        entry: (B, T, W) or expanded to it over B, what a token is before its patch is added.
        cache: which is written to.
        scale: (B, …), the factors of the queries, or None.
    """

    def __init__(self, library: ctypes.CDLL, block: Block, entry: Tensor, cache: KVCache, scale: Tensor | None) -> None:
        self.library, config, store = library, block.config, cache.store
        self.kept: list[Tensor] = []  # what C holds pointers to
        layers = block.layers
        self.array = (_Layer * len(layers))(*(self._layer(layer) for layer in layers))
        self.outputs = block.proj_out.out_features
        proj_weight, proj_bias = self._linear(block.proj_out)
        rotation = block.rotation()  # float32, as the weights are
        entry = entry if entry.stride()[1:] == (config.width, 1) else entry.contiguous()
        assert store.stride()[-2:] == (config.head_dim, 1)  # a copy would not be written to
        self.block = _Block(
            layers=len(layers),
            width=config.width,
            hidden=cast("nn.Linear", layers[0].mlp[1]).out_features,
            head_dim=config.head_dim,
            dim=config.dim,
            outputs=self.outputs,
            length=entry.shape[1],
            prefix=cache.prefix,
            layer=self.array,
            in_weight=self._pointer(self._panels(block.proj_in.weight)),
            proj_weight=proj_weight,
            proj_bias=proj_bias,
            entry=self._pointer(entry),
            entry_batch=entry.stride(0),
            scale=None if scale is None else self._pointer(scale.reshape(-1).contiguous()),
            cos=None if rotation is None else self._pointer(rotation[0].contiguous()),
            sin=None if rotation is None else self._pointer(rotation[1].contiguous()),
            store=self._pointer(store),
            **dict(zip(("store_layer", "store_kind", "store_batch", "store_head"), store.stride(), strict=False)),
        )
        size = sum(parameter.numel() * parameter.itemsize for parameter in layers[0].parameters()) * len(layers)
        self.threads = torch.get_num_threads() if size >= PARALLEL else 1
        self.scratch, self.room = torch.empty(0, device="cpu", dtype=torch.float32), (0, 0)  # of rows and threads
        self.shape = store.shape[2], entry.shape[1], config.dim

    def __call__(self, x: Tensor, start: int) -> Tensor:
        """x (B, n, D) float32, patches start … start+n-1, to the outputs (B, n, O) of the last layer."""
        batch, count, size = x.shape
        rows, length, dim = self.shape
        # C looks at no shape: what does not fit would be read from, and written to, memory of somebody else.
        assert x.dtype == torch.float32 and x.device.type == "cpu" and (batch, size) == (rows, dim), (x.dtype, x.shape)
        assert start >= 0 and start + count <= length, (start, count, length)
        x = x.contiguous()
        asked = (batch * count, self.threads)
        if asked != self.room:
            size = self.library.tarflow_scratch(self.block, *asked)
            self.scratch, self.room = torch.empty(size, device="cpu", dtype=torch.float32), asked
        out = torch.empty(batch, count, self.outputs, device="cpu", dtype=torch.float32)
        pointers = (x.data_ptr(), out.data_ptr(), self.scratch.data_ptr())
        self.library.tarflow_step(self.block, *pointers, batch, count, start, self.threads)
        return out

    def _layer(self, layer: Layer) -> _Layer:
        attention = layer.attention
        norm2, up, _, down = cast("tuple[nn.LayerNorm, nn.Linear, nn.GELU, nn.Linear]", tuple(layer.mlp))
        pointers: list[int] = []
        for norm, *linears in ((attention.norm, attention.qkv, attention.out), (norm2, up, down)):
            pointers += [self._pointer(norm.weight.contiguous()), self._pointer(norm.bias.contiguous())]
            for linear in linears:
                pointers += self._linear(linear)
        return _Layer(*pointers, attention.norm.eps, norm2.eps)

    def _linear(self, linear: nn.Linear) -> tuple[int, int]:
        size = self.library.tarflow_panel()
        bias = F.pad(linear.bias, (0, -linear.out_features % size)).contiguous()
        return self._pointer(self._panels(linear.weight)), self._pointer(bias)

    def _panels(self, weight: Tensor) -> Tensor:
        """(N, K) to panels of columns (N/size, K, size), the last one filled up with zeros."""
        size = self.library.tarflow_panel()
        padded = F.pad(weight, (0, 0, 0, -len(weight) % size))
        return padded.view(-1, size, weight.shape[1]).transpose(1, 2).contiguous()

    def _pointer(self, tensor: Tensor) -> int:
        self.kept.append(tensor)
        return tensor.data_ptr()
