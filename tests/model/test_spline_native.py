"""The C of a spline is its operations, gives way to them where it has to, and takes numbers of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from flow_cases import assert_close, unchanged
from spline_cases import drawn, every_shape, has_compiler, make, needs_compiler
from tarflow.model import spline_native
from tarflow.model.rational_quadratic import LEAST_SHARE
from tarflow.model.spline import Spline
from tarflow.native.compile import compiled


def spread(spline: Spline, of_params: Tensor) -> Tensor:
    """What a gradient by the parameters is compared relative to: its size in the same number."""
    by_number = of_params.unflatten(-1, (-1, spline.dim))
    return by_number.abs().amax(dim=-2, keepdim=True).expand_as(by_number).flatten(-2)


@needs_compiler
@every_shape
def test_the_c_is_the_formula(dim: int, bins: int, interval: float, bound: float | None) -> None:
    spline = make(dim, bins, interval, bound)
    x, params = (t.requires_grad_() for t in drawn(spline, 101, wild=0.7, dtype=torch.float32))
    exact_x, exact_params = (t.detach().double().requires_grad_() for t in (x, params))
    assert spline.native.fits(x, params) and not spline.native.fits(exact_x, exact_params)
    with unchanged(x, params):
        z, ladj = spline(x, params)
    want = spline(exact_x, exact_params)
    assert_close(z.double(), want[0], 3e-5)
    assert_close(ladj.double(), want[1], 2e-4)
    along = torch.randn_like(z), torch.randn_like(ladj)
    got = torch.autograd.grad((z, ladj), (x, params), along)
    wanted = torch.autograd.grad(want, (exact_x, exact_params), [t.double() for t in along])
    assert_close(got[0].double(), wanted[0], 1e-3)
    assert float(((got[1] - wanted[1]).abs() / (1 + spread(spline, wanted[1]))).max()) < 1e-3
    with torch.no_grad():
        assert_close(spline.inverse(z, params).double(), spline.inverse(z.double(), params.double()), 1e-4)


@needs_compiler
def test_second_derivatives_are_those_of_the_formula() -> None:
    """A gradient that is to be differentiated again comes from the operations, also where only one side wants it."""
    spline = make(4)
    x, params = (t.requires_grad_() for t in drawn(spline, 3, wild=0.5, dtype=torch.float32))

    def twice(forward: Callable[..., tuple[Tensor, Tensor]], by: list[Tensor]) -> tuple[Tensor, ...]:
        z, ladj = forward(x, params)
        first = torch.autograd.grad(z.square().sum() + ladj.exp().sum(), by, create_graph=True)
        return (*first, *torch.autograd.grad(torch.stack([t.square().sum() for t in first]).sum(), (x, params)))

    for by in ([x, params], [x], [params]):
        for got, want in zip(twice(spline, by), twice(spline.reference, by), strict=True):
            assert_close(got / want.abs().max(), want / want.abs().max(), 1e-4)
    frozen = params.detach()
    (score,) = torch.autograd.grad(spline(x, frozen)[1].sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(score.sum(), x)
    (wanted,) = torch.autograd.grad(spline.reference(x, frozen)[1].sum(), x, create_graph=True)
    assert_close(curvature, torch.autograd.grad(wanted.sum(), x)[0], 1e-3 * float(curvature.abs().max()))


@needs_compiler
@pytest.mark.parametrize("dim", [1, 12, 32])
def test_neither_threads_nor_strides_nor_neighbours_change_a_bit(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spline = make(dim)
    x, params = drawn(spline, 33, dtype=torch.float32)
    monkeypatch.setattr(spline_native, "PARALLEL", 1)

    def everything(x: Tensor, params: Tensor) -> list[Tensor]:
        x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
        z, ladj = spline(x, params)
        found = torch.autograd.grad((z, ladj), (x, params), (z.detach(), ladj.detach()))
        with torch.no_grad():
            return [z, ladj, *found, spline.inverse(z, params)]

    want, threads = everything(x, params), torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        parallel = everything(x, params)
    finally:
        torch.set_num_threads(threads)
    swapped = everything(x.transpose(0, 1), params.transpose(0, 1))
    alone = everything(x[1, 7:8], params[1, 7:8])
    for one, other, turned, single in zip(want, parallel, swapped, alone, strict=True):
        assert torch.equal(one, other) and torch.equal(one, turned.transpose(0, 1)) and torch.equal(one[1, 7:8], single)


@needs_compiler
def test_shapes_that_do_not_fit_are_never_handed_over() -> None:
    spline = make(4)
    x, params = drawn(spline, dtype=torch.float32)
    for wrong in (params[..., :-1], params[:, 1:], params[..., :-4]):
        with pytest.raises(AssertionError):
            spline(x, wrong)


def _in_forward_mode(spline: Spline, x: Tensor, params: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(spline(x, forward_ad.make_dual(params, torch.ones_like(params)))[0]).tangent


def _counted(spline: Spline, x: Tensor, params: Tensor) -> Tensor:
    with FlopCounterMode(display=False):
        return spline(x, params)[0]


def _traced(spline: Spline, x: Tensor, params: Tensor) -> Tensor:
    return torch.jit.trace(spline, (x[:, :2], params[:, :2]), check_trace=False)(x, params)[0]


WATCHED: dict[str, Callable[[Spline, Tensor, Tensor], Tensor]] = {
    "vmap": lambda spline, x, params: torch.func.vmap(lambda a, b: spline(a[None], b[None])[0][0])(x, params),
    "grad": lambda spline, x, params: torch.func.grad(lambda a: spline(a, params)[1].sum())(x),
    "jvp": lambda spline, x, params: torch.func.jvp(lambda a: spline(a, params)[0], (x,), (torch.ones_like(x),))[1],
    "forward mode": _in_forward_mode,
    "hessian": lambda spline, x, params: torch.func.hessian(lambda a: spline(a, params)[1].sum())(x[:1, :1]),
    "trace": lambda spline, x, params: torch.jit.trace(spline, (x[:, :2], params[:, :2]), check_trace=False)(x, params)[
        0
    ],
    "compile": lambda spline, x, params: torch.compile(spline, backend="eager", fullgraph=True)(x, params)[0],
    "mode": _counted,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("name", WATCHED)
def test_who_looks_at_operations_sees_them(name: str) -> None:
    spline = make(3)
    x, params = drawn(spline, 4, wild=0.5)
    if name == "hessian":
        params = params[:1, :1]
    want = WATCHED[name](spline, x, params)  # in float64, which is never C
    got = WATCHED[name](spline, x.float(), params.float())
    assert_close(got.double(), want, 1e-3 * max(1.0, float(want.abs().max())))


# --- numbers of every kind -----------------------------------------------------------------------------------------


@pytest.fixture(params=["C", "operations"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes float32."""
    if request.param == "operations":
        monkeypatch.setattr(spline_native, "compiled", lambda *_: None)
    elif not has_compiler:
        pytest.skip("needs GCC and a PyTorch with libgomp")
    return str(request.param)


def with_gradients(spline: Spline, x: Tensor, params: Tensor) -> list[Tensor]:
    x, params = x.detach().requires_grad_(), params.detach().requires_grad_()
    assert spline.native.fits(x, params) == (
        x.dtype == torch.float32 and spline_native.compiled("spline", ()) is not None
    )
    z, ladj = spline(x, params)
    found = torch.autograd.grad(z.sum() + ladj.sum(), (x, params))
    with torch.no_grad():
        return [z.detach(), ladj.detach(), *found, spline.inverse(z, params)]


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("dim", [3, 16, 20])
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_wild_parameters_give_numbers(dim: int, size: float) -> None:
    spline = make(dim)
    x, params = drawn(spline, 50, dtype=torch.float32)
    params = size * params.sign() * torch.rand_like(params).round()
    x[0, :3] = torch.tensor([1e30, -1e30, 1e4]).unsqueeze(1)
    for tensor in with_gradients(spline, x, params)[:4]:
        assert bool(tensor.isfinite().all())
    outside = x.abs() > 1
    z, _ = spline(x, params)
    affine = super(Spline, spline).forward(x, params[..., : 2 * dim])[0]
    assert_close(z[outside], affine[outside], 1e-6)


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("dim", [3, 16, 20])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_in_its_row(dim: int, bad: float) -> None:
    spline = make(dim)
    x, params = drawn(spline, 9, dtype=torch.float32)
    want = with_gradients(spline, x, params)
    x[1, 4, -1] = bad
    for place in range(dim + 1, spline.size, 7):
        params[0, 5, place] = bad
    got = with_gradients(spline, x, params)
    keep = torch.ones(2, 9, dtype=torch.bool)
    keep[1, 4] = keep[0, 5] = False
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one[keep], other[keep])
    assert not math.isfinite(float(got[0][1, 4, -1]))
    if bad != -math.inf:  # which is a bin of no more than the least share
        assert math.isnan(float(got[1][0, 5]))


@pytest.mark.usefixtures("kind")
def test_ends_and_knots_are_where_two_pieces_meet() -> None:
    spline = make(1, bins=4)
    params = torch.zeros(1, 9, spline.size)
    params[..., 2:] = torch.tensor([0.3, -0.7, 1.1, 0, -0.5, 0.9, 0.2, 0.6, 0.8, -1.2, 0.4])
    shares = LEAST_SHARE + (1 - 4 * LEAST_SHARE) * params[0, 0, 2:6].double().softmax(dim=0)
    knots = (2 * torch.cumsum(shares, 0)[:3] - 1).float()
    ends = torch.tensor([-1.0, 1.0])
    middle = torch.cat([ends[:1], knots, ends[1:], torch.tensor([-1.5, 1.5, 0.0, -0.0])]).view(1, 9, 1)
    infinity = torch.tensor(torch.inf)
    sides = [torch.nextafter(middle, -infinity), middle, torch.nextafter(middle, infinity)]
    (before, ladj_before, *_), (at, ladj_at, *_), (after, ladj_after, *_) = (
        with_gradients(spline, x, params) for x in sides
    )
    for one, other in ((before, at), (after, at), (ladj_before, ladj_at), (ladj_after, ladj_at)):
        assert_close(one, other, 1e-5)
    assert_close(at[0, [0, 4, 5, 6], 0], torch.tensor([-1.0, 1.0, -1.5, 1.5]), 2e-7)
    assert_close(spline.inverse(at, params), middle, 2e-6)


@pytest.mark.usefixtures("kind")
def test_narrow_parameters_are_computed_in_float32() -> None:
    spline = make(4)
    x, params = drawn(spline, dtype=torch.float32)
    narrow = params.bfloat16()
    for got, want in zip(spline(x, narrow), spline(x, narrow.float()), strict=True):
        assert torch.equal(got, want) and got.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spline(x, params)[0], spline(x, params)[0]) and spline(x, params)[0].dtype == torch.float32
    z, ladj = spline(x, params.double())
    assert z.dtype == ladj.dtype == spline.inverse(x, params.double()).dtype == torch.float64


@needs_compiler
def test_what_is_compiled_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    spline = make(4)
    x, params = drawn(spline, dtype=torch.float32)
    assert spline.native.fits(x, params)
    monkeypatch.setattr(spline_native, "compiled", lambda *_: None)
    assert not spline.native.fits(x, params)


@needs_compiler
def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    spline = make(4)
    x, params = drawn(spline, dtype=torch.float32)
    assert spline.native.fits(x, params)
    compiled.cache_clear()
    monkeypatch.setenv("TARFLOW_NATIVE", "0")
    try:
        assert not spline.native.fits(x, params)
        assert_close(spline(x, params)[0], spline.reference(x, params)[0])
    finally:
        compiled.cache_clear()
