"""The compiled step: shapes that fill no vector, numbers that are not finite, and threads.

That it is the conditioner for every flow of the table, in any windows, is shown in `test_step.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from flow_cases import assert_close, randomise
from tarflow import SequenceFlow, TarFlow, TarFlowConfig
from tarflow.model.block import Block
from tarflow.sampling.cpu.native import library
from tarflow.sampling.cpu.step import HostStep

needs_compiler = pytest.mark.skipif(library() is None, reason="needs GCC and a PyTorch with libgomp")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def block_of(width: int, head_dim: int, patch: int = 2, expansion: int = 4) -> Block:
    config = TarFlowConfig(
        6 * patch,
        channels=1,
        patch_size=patch,
        width=width,
        layers=(2,),
        head_dim=head_dim,
        num_classes=3,
        expansion=expansion,
    )
    return randomise(TarFlow(config)).blocks[0]


@needs_compiler
@pytest.mark.parametrize(
    ("width", "head_dim", "patch", "expansion"),
    [(3, 1, 1, 1), (12, 4, 1, 3), (20, 10, 3, 2), (36, 36, 2, 1), (64, 64, 2, 4), (128, 64, 5, 1), (160, 80, 2, 2)],
)
def test_shapes_that_fill_no_vector(width: int, head_dim: int, patch: int, expansion: int) -> None:
    block = block_of(width, head_dim, patch, expansion)
    for rows in (1, 2, 5, 7, 12):
        x, context = torch.randn(rows, 35, patch**2), block.context(torch.arange(rows) % 3)
        caches = [block.new_cache(rows) for _ in range(2)]
        step = HostStep(block, context, caches[0])
        assert step.native is not None
        for start, end in itertools.pairwise([0, 1, 2, 5, 21, 35]):
            want = block.conditioner(x[:, start:end], context, start, caches[1])
            assert_close(step(x[:, start:end], start), want, 2e-5)
        assert_close(caches[0].store, caches[1].store, 2e-5)


@needs_compiler
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_is_not_finite_stays_so_and_stays_in_its_row(bad: float) -> None:
    block = block_of(16, 8)
    x = torch.randn(3, 35, 4)
    clean, dirty = (HostStep(block, None, block.new_cache(3)) for _ in range(2))
    spoilt = x.clone()
    spoilt[1, 2, 1] = bad
    for i in range(35):
        want, got = clean(x[:, i : i + 1], i), dirty(spoilt[:, i : i + 1], i)
        assert torch.equal(got[::2], want[::2])
        assert torch.isfinite(got[1]).all() == (i < 2)


@needs_compiler
def test_large_numbers_are_as_exact_as_pytorch_has_them() -> None:
    """Attention logits of hundreds, and GELUs far out on both sides."""
    block = block_of(64, 16)
    for layer in block.layers:
        layer.attention.qkv.weight *= 8
        layer.mlp[1].weight *= 4
    x = torch.randn(4, 35, 4) * 5
    step = HostStep(block, None, block.new_cache(4))
    wide = randomise(SequenceFlow(block.config)).double().blocks[0]
    wide.load_state_dict(block.state_dict())
    exact, theirs = wide.conditioner(x.double(), None), block.conditioner(x, None)
    for ours, b, c in zip(step(x, 0).chunk(2, -1), theirs.chunk(2, -1), exact.chunk(2, -1), strict=True):
        limit = 4 * (b - c).abs().max() + 1e-6
        assert (ours - c).abs().max() <= limit


@needs_compiler
@pytest.mark.parametrize("rows", [1, 7])
def test_the_number_of_threads_changes_no_bit(rows: int) -> None:
    block = block_of(80, 20)
    x, results = torch.randn(rows, 35, 4), []
    for threads in (1, 2, 3, 5):
        step = HostStep(block, None, block.new_cache(rows))
        assert step.native is not None
        step.native.threads = threads
        results.append(torch.cat([step(x[:, i : i + 1], i) for i in range(35)], dim=1))
    assert all(torch.equal(result, results[0]) for result in results)


def test_only_float32_is_native() -> None:
    block = block_of(16, 8).double()
    assert isinstance(block.proj_in, nn.Linear)
    assert HostStep(block, None, block.new_cache(1)).native is None
