"""A flow with bf16 products: what is rounded, what is not, and that it is a flow like any other."""

from __future__ import annotations

import pytest
import torch

import tarflow
from flow_cases import assert_close, build, images, labels, latents, names, repeated
from tarflow.model.transformer import Layer
from tarflow.sampling.cuda.graph import Captured
from tarflow.sampling.guidance import predictor
from tarflow.sampling.narrow import narrowed
from tarflow.sampling.sequential import sequential


@pytest.mark.parametrize("name", names(sequences=True))
def test_matrices_of_the_layers_are_rounded_and_nothing_else(name: str) -> None:
    flow = build(name, torch.float32)
    narrow = narrowed(flow)
    rounded = {
        f"{outer}.{inner}"
        for outer, layer in narrow.named_modules()
        if isinstance(layer, Layer)
        for inner, _ in layer.named_parameters()
        if "norm" not in inner and not inner.startswith("mlp.0")
    }
    for (key, before), after in zip(flow.state_dict().items(), narrow.state_dict().values(), strict=True):
        assert after.dtype == (torch.bfloat16 if key in rounded else torch.float32), key
        assert_close(after.float(), before, 0.01)
    assert flow.blocks[0].product_dtype == torch.float32 and narrow.blocks[0].new_cache(2).store.dtype == torch.bfloat16
    x = images(flow, 2, dtype=torch.float32)
    assert not torch.equal(flow.log_prob(x), narrow.log_prob(x))


def test_it_is_as_far_from_float32_as_bf16_products_make_it_and_closer_than_bf16_weights() -> None:
    flow = build("bounded_conditional", torch.float32, image_size=16).requires_grad_(False)
    x = torch.randn(16, 1, 16, 16)
    exact = flow.log_prob(x, labels(flow, 16))
    errors = [float((f.log_prob(x, labels(flow, 16)) - exact).abs().mean()) for f in (narrowed(flow), flow.bfloat16())]
    assert 0 < errors[0] < errors[1] / 2


@pytest.mark.parametrize("name", ["conditional", "rotary", "additive"])
def test_captured_steps_and_jacobi_decode_it(name: str) -> None:
    flow = narrowed(build(name, torch.float32)).requires_grad_(False)
    y, z = labels(flow, 3), latents(flow, 3, dtype=torch.float32)
    for block in flow.blocks:
        want = sequential(predictor(block, y, None, block.new_cache(3)), z).x
        assert want.dtype == torch.float32
        assert_close(Captured(repeated).solve(block, z, y, None).x, want, 0.05)
    found = tarflow.sample(flow, 3, y, noise=z, solver="jacobi")
    assert_close(found, tarflow.sample(flow, 3, y, noise=z, solver="sequential"), 0.1)
