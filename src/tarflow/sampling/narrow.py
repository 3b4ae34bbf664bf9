"""A flow whose products are in bf16, to draw samples with: half the bytes, and on a GPU several times the rate."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from tarflow.model.sequence import SequenceFlow
from tarflow.model.transformer import Layer

Flow = TypeVar("Flow", bound=SequenceFlow)


def narrowed(flow: Flow, dtype: torch.dtype = torch.bfloat16) -> Flow:
    """A copy of a flow with the matrices within its Transformer layers in `dtype`, and all else as it is.

    It is to bf16 weights what autocast is to bf16 products: the state, the sums that run through the layers, the norms,
    and what leads into a block and out of it stay in float32. `flow.to(dtype)` would round them as well, for no time:
    samples then are several times as far from those in float32.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> narrow = tarflow.narrowed(flow)
    >>> narrow.blocks[0].layers[0].attention.qkv.weight.dtype, narrow.dtype
    (torch.bfloat16, torch.float32)
    """
    result = copy.deepcopy(flow)
    for layer in result.modules():
        if isinstance(layer, Layer):
            layer.attention.norm = NarrowNorm.of(layer.attention.norm, dtype)
            layer.mlp[0] = NarrowNorm.of(layer.mlp[0], dtype)
            for module in layer.modules():
                if isinstance(module, nn.Linear):
                    module.to(dtype)
    return result


class NarrowNorm(nn.LayerNorm):
    """A layer norm in the dtype of its weights, whose result is rounded to that of the product after it."""

    narrow: torch.dtype

    @classmethod
    def of(cls, norm: nn.Module, dtype: torch.dtype) -> NarrowNorm:
        """The same norm, with the same weights."""
        assert isinstance(norm, nn.LayerNorm)
        result = cls(norm.normalized_shape, norm.eps, device="meta")
        result.weight, result.bias, result.narrow = norm.weight, norm.bias, dtype
        return result.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(self.narrow)
