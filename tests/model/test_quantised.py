"""A flow whose layers were replaced by others: quantised ones, a wrapper of somebody's own."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import tarflow
from flow_cases import build, images, labels


class Wrapped(nn.Module):
    """A layer without a tensor called `weight`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def quantised(flow: tarflow.TarFlow) -> tarflow.TarFlow:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch moves it to another package
        return torch.ao.quantization.quantize_dynamic(flow, {nn.Linear}, dtype=torch.qint8)


def wrapped(flow: tarflow.TarFlow) -> tarflow.TarFlow:
    for block in flow.blocks:
        block.proj_in, block.proj_out = Wrapped(block.proj_in), Wrapped(block.proj_out)  # type: ignore[assignment]
        for layer in block.layers:
            layer.mlp[1] = Wrapped(layer.mlp[1])
    return flow


@pytest.mark.filterwarnings("ignore:.*quantized.*", "ignore:.*torch.ao.*", "ignore:.*TypedStorage.*")
@pytest.mark.parametrize("replace", [quantised, wrapped])
@pytest.mark.parametrize("name", ["conditional", "additive", "rotary"])
def test_a_flow_of_replaced_layers_works(name: str, replace: object) -> None:
    flow = build(name, torch.float32).requires_grad_(False)
    x, y = images(flow, 3, dtype=torch.float32), labels(flow, 3)
    right = flow.log_prob(x, y)
    other = replace(flow)  # type: ignore[operator]
    assert other.dtype == torch.float32
    found = other.log_prob(x, y)
    assert float((found - right).abs().max()) < 0.05 * float(right.abs().max())
    samples = tarflow.sample(other, 3, y, seed=3)
    torch.testing.assert_close(tarflow.sample(other, 3, y, seed=3, solver="sequential"), samples, atol=1e-2, rtol=1e-2)
    z, _ = other.encode(x, y)
    torch.testing.assert_close(tarflow.sample(other, 3, y, noise=other.base.standardised(z)), x, atol=0.3, rtol=0.3)
