"""The numbers of a token one after the other: a masked MLP around a transform, and its decoding in C."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from flow_cases import SEQUENCE, assert_close
from tarflow import ConfigError, SequenceConfig
from tarflow.architecture import TRANSFORMS, TransformEntry
from tarflow.model import by_number_native
from tarflow.model.by_number import ByNumber
from tarflow.model.transform import Rule, make_transform

KINDS = ("affine", "additive", "spline")
every_kind = pytest.mark.parametrize("kind", KINDS)


def transform_of(kind: str, dim: int = 5, dtype: torch.dtype = torch.float32, **changes: Any) -> ByNumber:
    """One whose weights are random, of 16 hidden units."""
    config = SequenceConfig(**{**SEQUENCE, "dim": dim, "transforms": (f"{kind}-by-number",) * 2, **changes})
    transform = make_transform(config.transforms[0], config).to(dtype)
    assert isinstance(transform, ByNumber)
    torch.nn.init.normal_(transform.out, std=0.3, generator=torch.Generator().manual_seed(0))
    return transform.requires_grad_(False)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@every_kind
def test_at_first_it_is_the_transform_inside(kind: str) -> None:
    config = SequenceConfig(**{**SEQUENCE, "transforms": (f"{kind}-by-number", kind)})
    around, plain = (make_transform(name, config).double() for name in config.transforms)
    x, params = normal(3, 2, 3, seed=1, dtype=torch.float64), normal(3, 2, around.size, seed=2, dtype=torch.float64)
    for got, want in zip(around(x, params), plain(x, params[..., : plain.size]), strict=True):
        assert_close(got, want)
    assert_close(around.inverse(x, params), plain.inverse(x, params[..., : plain.size]))


@every_kind
@pytest.mark.parametrize("dim", [2, 3, 17, 40])  # fewer and more than there are hidden units
def test_each_number_sees_those_before_it_and_no_other(kind: str, dim: int) -> None:
    transform = transform_of(kind, dim, torch.float64)
    params = normal(1, 1, transform.size, seed=3, dtype=torch.float64)

    def encode(x: Tensor) -> Tensor:
        z: Tensor = transform(x.view(1, 1, -1), params)[0].flatten()
        return z

    x = 0.5 * normal(dim, seed=4, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(encode, x)
    assert torch.equal(matrix, matrix.tril()) and (matrix.diag() > 0).all()
    assert_close(transform(x.view(1, 1, -1), params)[1][0, 0], matrix.diag().log().sum())
    if dim <= transform.hidden:
        assert (matrix.diagonal(-1) != 0).all()


@every_kind
@pytest.mark.parametrize("rows", [1, 4, 16, 37])
@pytest.mark.parametrize("rule", [None, "paper", "stable"])
def test_c_is_the_operations(kind: str, rows: int, rule: Rule | None) -> None:
    """Within float32, against the operations in float64; with a bound, and several threads."""
    narrow = transform_of(kind, 7, log_scale_bound="auto")
    wide = copy.deepcopy(narrow).double()
    z, params = 0.7 * normal(rows, 2, 7, seed=5), [normal(rows, 2, narrow.size, seed=seed) for seed in (6, 7)]
    strength = normal(rows, 2, 1, seed=8).abs()
    if not by_number_native.fits(narrow.inner, z, *params, narrow.into, narrow.out):
        pytest.skip("native code needs GCC and a PyTorch with libgomp")
    if rule is None:
        got, want = narrow.inverse(z, params[0]), wide.inverse(z.double(), params[0].double())
    else:
        got = narrow.guided_inverse(z, *params, strength, rule)
        want = wide.guided_inverse(z.double(), *(p.double() for p in params), strength.double(), rule)
    assert_close(got.double(), want, 2e-3 if kind == "spline" else 2e-4)  # whose slopes are steep here and there


@every_kind
def test_gradients_go_through_the_operations(kind: str) -> None:
    transform = transform_of(kind, 3, torch.float64).requires_grad_()
    z = (0.5 * normal(2, 1, 3, seed=9, dtype=torch.float64)).requires_grad_()
    params = normal(2, 1, transform.size, seed=10, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(transform.inverse, (z, params))
    narrow = transform_of(kind, 3).requires_grad_()
    assert not by_number_native.fits(narrow.inner, z.detach().float(), params.detach().float(), narrow.into, narrow.out)


def test_a_transform_that_c_does_not_know_is_walked_in_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSFORMS, "two_slopes", TransformEntry("toy_transform:TwoSlopes", scales=True))
    transform = transform_of("two_slopes", 4)
    x, params = normal(3, 2, 4, seed=11), normal(3, 2, transform.size, seed=12)
    assert not by_number_native.fits(transform.inner, x, params)
    assert_close(transform.inverse(transform(x, params)[0], params), x, 1e-4)


def test_a_single_number_has_none_before_it() -> None:
    config = SequenceConfig(**{**SEQUENCE, "dim": 1, "transforms": ("affine-by-number", "affine")})
    with pytest.raises(ConfigError, match="transforms: affine by number takes tokens of two numbers at least, got 1"):
        make_transform(config.transforms[0], config)
