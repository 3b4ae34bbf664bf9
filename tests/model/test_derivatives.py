"""Derivatives of every kind, and what compiles, exports or maps over the flow from outside."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tarflow
from flow_cases import assert_close, build, images, labels

pytestmark = pytest.mark.filterwarnings(  # PyTorch's, on its way of doing what is asked
    "ignore:.*torch.jit.script. is deprecated:DeprecationWarning", "ignore:There is a performance drop:UserWarning"
)

NAMES = ["conditional", "additive", "rotary", "bounded_conditional", "spline"]


def density(flow: tarflow.TarFlow) -> Callable[[Tensor], Tensor]:
    shape = (1, flow.config.channels, *flow.config.image_shape)
    return lambda flat: flow.log_prob(flat.view(shape))[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_hessian_is_the_derivative_of_the_score(name: str) -> None:
    flow = build(name)
    x = images(flow, 1).flatten()
    f = density(flow)
    with tarflow.second_order():
        hessian = torch.autograd.functional.hessian(f, x)
        assert_close(torch.func.hessian(f)(x), hessian, 1e-9)
    step = 1e-5

    def score(at: Tensor) -> Tensor:
        return torch.func.grad(f)(at)

    for i in (0, 5, len(x) - 1):
        unit = torch.zeros_like(x)
        unit[i] = step
        assert_close(hessian[i], (score(x + unit) - score(x - unit)) / (2 * step), 1e-5)
    assert not torch.allclose(hessian, torch.zeros_like(hessian))


@pytest.mark.parametrize("name", NAMES)
def test_a_penalty_on_gradients_reaches_the_weights(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 2).requires_grad_(), labels(flow, 2)
    with tarflow.second_order():
        (score,) = torch.autograd.grad(flow.log_prob(x, y).sum(), x, create_graph=True)
        score.square().sum().backward()
    assert all(p.grad is not None for n, p in flow.named_parameters() if n.endswith("weight"))


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_is_reverse_mode(name: str) -> None:
    flow = build(name).requires_grad_(False)
    x, along = images(flow, 1).flatten(), images(flow, 1, seed=4).flatten()
    f = density(flow)
    with tarflow.second_order():
        value, moved = torch.func.jvp(f, (x,), (along,))
        jacobian = torch.func.jacfwd(lambda a: flow.encode(a.view(1, *flow.config.image_shape)[None])[0].flatten())(x)
    assert_close(value, f(x))
    assert_close(moved, torch.func.grad(f)(x) @ along)
    _, ladj = flow.encode(x.view(1, flow.config.channels, *flow.config.image_shape))
    assert_close(torch.linalg.slogdet(jacobian).logabsdet, ladj[0])


def test_within_it_the_density_is_the_same() -> None:
    flow = build("conditional")
    x, y = images(flow, 3), labels(flow, 3)
    with tarflow.second_order():
        inside = flow.log_prob(x, y)
    assert_close(inside, flow.log_prob(x, y))


@pytest.mark.parametrize("name", NAMES)
def test_vmap_goes_over_images_and_labels(name: str) -> None:
    flow = build(name).requires_grad_(False)
    x, y = images(flow, 4), labels(flow, 4)
    if y is None:
        found = torch.func.vmap(lambda a: flow.log_prob(a[None])[0])(x)
    else:
        found = torch.func.vmap(lambda a, b: flow.log_prob(a[None], b[None])[0])(x, y)
    assert_close(found, flow.log_prob(x, y))


@pytest.mark.parametrize("label", [-2, 3, 99])
def test_where_labels_cannot_be_asked_a_wrong_one_is_no_class_all_the_same(label: int) -> None:
    flow = build("conditional").requires_grad_(False)
    x, y = images(flow, 2), torch.tensor([0, label])
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        torch.func.vmap(lambda a, b: flow.log_prob(a[None], b[None])[0])(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conditional", "rotary"])
def test_the_whole_density_compiles_as_one_graph(name: str) -> None:
    flow = build(name).requires_grad_(False)
    x, y = images(flow, 3), labels(flow, 3)
    compiled = torch.compile(flow.log_prob, backend="eager", fullgraph=True)
    assert_close(compiled(x, y), flow.log_prob(x, y))


class Density(torch.nn.Module):
    def __init__(self, flow: tarflow.TarFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.flow.log_prob(x, y)


EXPORTED: dict[str, Callable[[torch.nn.Module, tuple[Tensor, ...]], Any]] = {
    "export": lambda module, given: torch.export.export(
        module, given, dynamic_shapes=tuple({0: torch.export.Dim("B")} for _ in given)
    ).module(),
    "trace": lambda module, given: torch.jit.trace(module, given, check_trace=False),
}


@pytest.mark.parametrize("how", EXPORTED)
@pytest.mark.parametrize(("what", "name"), [("flow", "rotary"), ("log_prob", "conditional")])
def test_an_export_takes_any_number_of_images(how: str, what: str, name: str) -> None:
    flow = build(name).requires_grad_(False)
    module = flow if what == "flow" else Density(flow)
    x, y = images(flow, 4), labels(flow, 4)
    more, their = images(flow, 7, seed=9), labels(flow, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = EXPORTED[how](module, (x, y))
    found, right = exported(more, their), module(more, their)
    for a, b in zip(found, right, strict=True) if what == "flow" else ((found, right),):
        assert_close(a, b)
