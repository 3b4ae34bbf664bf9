"""Computing again in the backward pass: the same bits, less memory, and derivatives of any order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flow_cases import build, images, labels, names
from tarflow import TarFlow
from tarflow.config import Recompute
from tarflow.training import layers as recomputing
from tarflow.training.layers import recompute_layers


def loss_and_gradients(flow: TarFlow, recompute: Recompute = "nothing") -> list[Tensor]:
    x, y = images(flow, 5, dtype=flow.dtype), labels(flow, 5)
    recompute_layers(flow, recompute)
    z, ladj = flow(x, y)
    loss = (z.square().mean(dim=(1, 2)) - ladj.sum(dim=1)).mean()
    return [loss.detach(), *torch.autograd.grad(loss, list(flow.parameters()))]


@pytest.mark.parametrize("name", [name for name in names() if name != "one_token_a_row"])
@pytest.mark.parametrize("recompute", ["elementwise", "layers"])
def test_computing_again_changes_no_bit(name: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "LEAST_NUMBERS", 0)
    flow = build(name, torch.float32)
    for got, want in zip(loss_and_gradients(flow, recompute), loss_and_gradients(flow), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("recompute", ["elementwise", "layers"])
def test_computing_again_is_the_same_under_autocast(recompute: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "LEAST_NUMBERS", 0)
    flow = build("bounded_conditional", torch.float32)
    exact = loss_and_gradients(flow)
    with torch.autocast("cpu", torch.bfloat16):
        want, got = loss_and_gradients(flow), loss_and_gradients(flow, recompute)
    for a, b, c in zip(got, want, exact, strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32 and not torch.equal(a, c)


def test_small_flows_do_not_compute_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookkeeping would take them longer than the memory is worth."""
    calls = []
    real = recomputing.gelu_linear
    monkeypatch.setattr(recomputing, "gelu_linear", lambda *a: calls.append(1) or real(*a))
    flow = build("unconditional", torch.float32)  # 5 images, 3 tokens, 16 channels
    monkeypatch.setattr(recomputing, "LEAST_NUMBERS", 5 * 3 * 16 + 1)
    loss_and_gradients(flow, "elementwise")
    assert not calls
    monkeypatch.setattr(recomputing, "LEAST_NUMBERS", 5 * 3 * 16)
    loss_and_gradients(flow, "elementwise")
    assert len(calls) == 2


def test_computing_again_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputing, "LEAST_NUMBERS", 0)
    flow = build("conditional", width=64, head_dim=16, image_size=16, layers=(3, 3))
    kept = {}
    for recompute in ("nothing", "elementwise", "layers"):
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in flow.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            recompute_layers(flow, recompute)
            z, ladj = flow(images(flow, 4), labels(flow, 4))
        kept[recompute] = sum(size for at, size in sizes.items() if at not in weights)
        del z, ladj
    # In widths a token and layer: 16 (x, norm, qkv 3, attention, x, norm, hidden 4, GELU 4, and the sum), 10, and 1.
    assert kept["elementwise"] < 0.7 * kept["nothing"], kept
    assert kept["layers"] < 0.2 * kept["nothing"], kept


@pytest.mark.parametrize("recompute", ["elementwise", "layers"])
@pytest.mark.parametrize("name", ["unconditional", "rotary", "additive"])
def test_a_second_derivative_is_that_of_what_is_kept(
    recompute: Recompute, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gradient penalty, to the images and to the weights. A pass that is silently taken for a constant is wrong."""
    monkeypatch.setattr(recomputing, "LEAST_NUMBERS", 0)
    flow = build(name)
    x, y = images(flow, 2).requires_grad_(), labels(flow, 2)

    def penalty(recompute: Recompute) -> tuple[Tensor, ...]:
        with sdpa_kernel(SDPBackend.MATH):  # no other kernel of attention has a second derivative
            recompute_layers(flow, recompute)
            z, ladj = flow(x, y)
            (gradient,) = torch.autograd.grad(z.square().sum() + ladj.sum(), [x], create_graph=True)
            return torch.autograd.grad(gradient.square().sum(), [x, *flow.parameters()], materialize_grads=True)

    for found, expected in zip(penalty(recompute), penalty("nothing"), strict=True):
        torch.testing.assert_close(found, expected)
