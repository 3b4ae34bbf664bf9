"""What stands in for the conditioner on a CPU computes what the conditioner does, for every flow, window and cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tarflow
from flow_cases import assert_close, build, labels, latents, names, unchanged
from tarflow.model.block import Block
from tarflow.sampling.cpu.native import library
from tarflow.sampling.cpu.step import THIN, HostStep, Product

every_seeing_case = pytest.mark.parametrize("name", names(sequences=True))


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(
    ("kind", "dtype", "batch"),
    [
        ("operations", torch.float32, 3),
        ("operations", torch.float64, 1),
        ("operations", torch.float64, THIN),
        ("native", torch.float32, 1),
        ("native", torch.float32, 3),
        ("native", torch.float32, THIN),
    ],
)
@every_seeing_case
def test_it_is_the_conditioner_in_any_windows(
    name: str, kind: str, dtype: torch.dtype, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PyTorch's operations, which know both dtypes, and by native code, which knows float32 alone."""
    if kind == "operations":
        monkeypatch.setattr("tarflow.sampling.cpu.step.library", lambda: None)
    elif library() is None:
        pytest.skip("native code needs GCC and a PyTorch with libgomp")
    flow = build(name, dtype)
    y, tolerance = labels(flow, batch), 1e-4 if dtype == torch.float32 else 1e-11
    temperature = torch.linspace(0.3, 1.5, batch, dtype=dtype)
    for block, warmth in itertools.product(flow.blocks, (None, temperature)):
        x, context = block.enter(latents(flow, batch, dtype=dtype))[:, :-1], block.context(y)
        caches = [block.new_cache(batch) for _ in range(2)]
        assert HostStep.fits(block, caches[0])
        step = HostStep(block, context, caches[0], warmth)
        assert (step.native is not None) == (kind == "native")
        for start, end in itertools.pairwise([0, 1, *range(3, x.shape[1], 2), x.shape[1]]):
            part = x[:, start:end]
            if end <= start:
                continue
            with unchanged(x, context, *block.parameters()):
                got = step(part, start)
            want = block.conditioner(part, context, start, caches[1], warmth)
            assert_close(got, want, tolerance)
        assert_close(caches[0].store, caches[1].store, tolerance)


@pytest.mark.parametrize("rows", [1, 2, 16, THIN - 1, THIN, 200])
def test_every_product_is_the_linear_layer(rows: int) -> None:
    linear, x = nn.Linear(7, 6).double(), torch.randn(rows, 7, dtype=torch.float64)
    blocks = Product(linear, 2)(x)
    assert blocks.shape == (3, rows, 2)
    assert_close(blocks.transpose(0, 1).reshape(rows, 6), linear(x), 1e-13)


def test_a_wider_state_than_the_weights_is_kept_wide() -> None:
    block = build("conditional", torch.float32).blocks[0]
    x = latents(build("conditional"), 2)[:, :1]
    assert HostStep(block, None, block.new_cache(2))(x, 0).dtype == torch.float32


class Doubled(nn.Linear):
    """A linear layer that somebody has put in the place of another one."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(block: Block) -> None:
    block.layers[0].register_forward_hook(lambda module, args, out: out + 1)


def replaced(block: Block) -> None:
    old = block.layers[0].mlp[1]
    block.layers[0].mlp[1] = Doubled(old.in_features, old.out_features).to(old.weight.dtype)


def reparametrised(block: Block) -> None:
    torch.nn.utils.parametrizations.weight_norm(block.proj_out)


def halved(block: Block) -> None:
    block.to(torch.bfloat16)


def another_activation(block: Block) -> None:
    block.layers[0].mlp[2] = nn.ReLU()


def an_approximate_activation(block: Block) -> None:
    block.layers[0].mlp[2] = nn.GELU(approximate="tanh")


CHANGES = [hooked, replaced, reparametrised, another_activation, an_approximate_activation]


@pytest.mark.parametrize("change", [*CHANGES, halved])
def test_it_does_not_stand_in_for_what_it_does_not_know(change: Any) -> None:
    block = build("conditional", torch.float32).blocks[0]
    assert HostStep.fits(block, block.new_cache(2))
    change(block)
    assert not HostStep.fits(block, block.new_cache(2))


def test_it_stands_back_from_autocast_gradients_and_other_caches() -> None:
    block = build("conditional", torch.float32).blocks[0]
    cache = block.new_cache(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert not HostStep.fits(block, cache)
    with torch.enable_grad():
        assert not HostStep.fits(block, cache)
    assert not HostStep.fits(block, block.new_cache(2, dtype=torch.float64))
    assert not HostStep.fits(block, block.new_cache(2, device=torch.device("meta")))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_block_is_sampled_as_it_is(change: Any) -> None:
    flow = build("conditional")
    before = tarflow.sample(flow, 3, solver="sequential")
    change(flow.blocks[1])
    noise = latents(flow, 3)
    assert_close(tarflow.sample(flow, 3, noise=noise, solver="sequential"), flow.decode(noise))
    if change is not reparametrised:  # which changes how weights are held, not what they are
        assert not torch.allclose(tarflow.sample(flow, 3, solver="sequential"), before)
