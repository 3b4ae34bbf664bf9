"""Ways to compute a layer that change its cost and not its result: attention in chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flow_cases import assert_close, build, images, labels
from tarflow.model import transformer
from tarflow.model.flow import TarFlow


def loss_and_gradients(flow: TarFlow) -> list[Tensor]:
    x, y = images(flow, 5, dtype=flow.dtype), labels(flow, 5)
    z, ladj = flow(x, y)
    loss = (z.square().mean(dim=(1, 2)) - ladj.sum(dim=1)).mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(flow.parameters()))]


@pytest.mark.parametrize("queries", [1, 2, 4, 5])
def test_attention_in_chunks_is_attention(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional", image_size=(6, 4))  # 5 tokens
    whole = loss_and_gradients(flow)
    calls = []
    real = transformer._window_mask
    monkeypatch.setattr(transformer, "_window_mask", lambda *a: calls.append(a[:2]) or real(*a))
    monkeypatch.setattr(transformer, "CPU_QUERIES", queries)
    for part, want in zip(loss_and_gradients(flow), whole, strict=True):
        assert_close(part, want, 1e-12)
    # Of every block's single layer, the chunks that are windows: not the first, and not a query on its own.
    windows = {1: [], 2: [(2, 4)], 4: [], 5: []}[queries]
    assert calls == 2 * windows
