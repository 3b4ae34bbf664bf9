"""One function is the model of a block: in one go or in any windows, with a cache or without, it says the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import slow_flow
from flow_cases import assert_close, build, images, labels, latents, names, sequence_of, tensors_of, unchanged
from tarflow.model.block import Block
from tarflow.model.cache import KVCache
from tarflow.model.context import Context

SEEING = names(sequences=True)
every_seeing_case = pytest.mark.parametrize("name", SEEING)
laws = settings(max_examples=40, deadline=None, derandomize=True, database=None)
BATCH = 3


def setting(name: str, index: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Block, Tensor, Context | None]:
    """A block, all slots but the last of three sequences in its own order, and its context."""
    flow = build(name, dtype)
    block = flow.blocks[index]
    return block, block.enter(latents(flow, BATCH, dtype=dtype))[:, :-1], block.context(labels(flow, BATCH))


def by_windows(
    block: Block,
    x: Tensor,
    context: Context | None,
    cuts: list[int],
    cache: KVCache,
    *,
    temperature: Tensor | None = None,
) -> Tensor:
    """The conditioner window by window, cut before the positions in `cuts`."""
    edges = [0, *sorted(set(cuts)), x.shape[1]]
    parts = []
    for start, end in itertools.pairwise(edges):
        parts.append(block.conditioner(x[:, start:end], context, start, cache, temperature))
    return torch.cat(parts, dim=1)


@st.composite
def cut_sequences(draw: st.DrawFn) -> tuple[str, int, list[int]]:
    """A case, one of its blocks, and where its sequence is cut."""
    name = draw(st.sampled_from(SEEING))
    index = draw(st.integers(0, len(sequence_of(name).layers) - 1))
    slots = sequence_of(name).slots
    inner = st.sampled_from(range(1, slots - 1)) if slots > 2 else st.nothing()
    return name, index, draw(st.lists(inner, unique=True))


@laws
@given(cut_sequences(), st.booleans())
def test_cached_is_uncached_for_any_windows(cut: tuple[str, int, list[int]], with_temperature: bool) -> None:
    name, index, cuts = cut
    block, x, context = setting(name, index)
    temperature = torch.tensor([1.0, 0.3, 2.5], dtype=torch.float64) if with_temperature else None
    cache = block.new_cache(BATCH)
    pointers, shape = (cache.keys.data_ptr(), cache.values.data_ptr()), cache.keys.shape
    with torch.no_grad(), unchanged(x, context, temperature):
        got = by_windows(block, x, context, cuts, cache, temperature=temperature)
        want = block.conditioner(x, context, temperature=temperature)
    assert_close(got, want, 1e-12)
    assert shape == (
        len(block.layers),
        BATCH,
        block.config.width // block.config.head_dim,
        block.conditions.places + x.shape[1],
        block.config.head_dim,
    )
    assert cache.length == x.shape[1] and cache.values.shape == cache.keys.shape == shape
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == pointers, "the cache was replaced, not written"


@laws
@given(cut_sequences(), st.integers(0, 100))
def test_positions_in_the_cache_can_be_written_again(cut: tuple[str, int, list[int]], seed: int) -> None:
    """What was there before, at the position and after it, leaves no trace: how a parallel solver revises a window."""
    name, index, cuts = cut
    block, x, context = setting(name, index)
    cache = block.new_cache(BATCH)
    junk = block.enter(latents(build(name), BATCH, seed))[:, :-1]
    with torch.no_grad():
        by_windows(block, junk * 10, context, [], cache)
        got = by_windows(block, x, context, cuts, cache)
        again = by_windows(block, x, context, cuts[:1], cache)
        want = block.conditioner(x, context)
    assert_close(got, want, 1e-12)
    assert_close(again, want, 1e-12)


@pytest.mark.parametrize("name", names(sequences=True, long=True))
def test_a_window_reads_the_prefix_from_the_cache(name: str) -> None:
    """Another prefix in the cache gives another prediction, at every position of the window."""
    block, x, context = setting(name)
    outputs = []
    for prefix in (x[:, :1], x[:, :1] + 1):
        cache = block.new_cache(BATCH)
        block.conditioner(prefix, context, 0, cache)
        outputs.append(block.conditioner(x[:, 1:], context, 1, cache))
    assert ((outputs[0] - outputs[1]).abs().amax(dim=(0, 2)) > 1e-3).all()


@every_seeing_case
def test_the_conditioner_is_the_formula(name: str) -> None:
    """Against a slow Transformer written from the paper: order of positions, heads, causality, temperature, GELU."""
    flow = build(name)
    tokens, y, lead = latents(flow, BATCH), labels(flow, BATCH), int(flow.sequence.start_token)
    temperatures, weights = [1.0, 0.3, 2.5], slow_flow.weights_of(flow)
    for index, block in enumerate(flow.blocks):
        x, order = block.enter(tokens)[:, :-1], slow_flow.permutation(flow.sequence, index)
        with torch.no_grad():
            params = block.conditioner(x, block.context(y), temperature=torch.tensor(temperatures, dtype=torch.float64))
        for row, temperature in enumerate(temperatures):
            given = slow_flow.given(flow.sequence, flow.state_dict(), weights[index], slow_flow.row_of(y, row))
            for i in range(x.shape[1]):
                known = x[row, lead : i + 1]
                with torch.no_grad():
                    want = slow_flow.predict(
                        flow.sequence, weights[index], index, order[: len(known) + 1], known, given, temperature
                    )
                assert_close(params[row, i], want)


@pytest.mark.parametrize("name", names(sequences=True, long=True))
def test_temperature_is_of_its_row_only(name: str) -> None:
    block, x, context = setting(name)
    plain = block.conditioner(x, context)
    ones = block.conditioner(x, context, temperature=torch.ones(BATCH).double())
    mixed = block.conditioner(x, context, temperature=torch.tensor([1.0, 0.4, 1.0]))
    assert_close(ones, plain, 1e-12)
    assert_close(mixed[[0, 2]], plain[[0, 2]], 1e-12)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-4)
    if not block.conditions.places:
        assert_close(mixed[1, 0], plain[1, 0], 1e-12)  # a single key has all the attention at any temperature


@every_seeing_case
def test_the_context_is_of_its_row_only(name: str) -> None:
    block, x, context = setting(name)
    y = labels(build(name), BATCH)
    of_rows = [block.context(block.conditions.rows(y, slice(i, i + 1))) for i in range(BATCH)]
    rows = [block.conditioner(x[i : i + 1], of_row) for i, of_row in enumerate(of_rows)]
    assert_close(block.conditioner(x, context), torch.cat(rows), 1e-12)
    null = block.context(None)
    if context is not None and null is not None:
        assert len(tensors_of(context)) == len(tensors_of(null)) > 0
        heads = (block.config.width // block.config.head_dim, block.conditions.places, block.config.head_dim)
        slots = block.config.slots if "aligned" in block.config.condition else 1
        for count, each in ((BATCH, context), (1, null)):
            assert each.added is None or each.added.shape == (count, slots, block.config.width)
            assert each.prefix is None or each.prefix.shape == (len(block.layers), 2, count, *heads)
        assert_close(block.conditioner(x, null.expand(BATCH)), block.conditioner(x, null), 1e-12)
    else:
        assert context is null is block.context(torch.full((BATCH,), -1)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["conditional", "additive"])
@pytest.mark.parametrize("cached", [False, True])
def test_predictions_are_float32_at_least(dtype: torch.dtype, name: str, cached: bool) -> None:
    block, x, context = setting(name, dtype=dtype)
    cache = block.new_cache(BATCH) if cached else None
    wide = torch.promote_types(dtype, torch.float32)
    params = block.conditioner(x.to(wide), context, 0, cache)
    assert params.dtype == wide
    assert cache is None or cache.keys.dtype == cache.values.dtype == dtype
    exact, x64, context64 = setting(name)
    want = exact.conditioner(x64, context64)
    assert_close(params.double(), want, {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 0.2))


def test_cached_is_uncached_under_autocast() -> None:
    """The cache keeps the weights' dtype, products are in bfloat16, and what comes out is float32."""
    block, x, context = setting("non_square", dtype=torch.float32)
    temperature = torch.tensor([1.0, 0.3, 2.5])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = by_windows(block, x, context, [1, 2], block.new_cache(BATCH), temperature=temperature)
        want = block.conditioner(x, context, temperature=temperature)
    assert got.dtype == want.dtype == torch.float32
    assert_close(got, want, 0.05)


def test_a_window_that_starts_later_needs_a_cache() -> None:
    block, x, context = setting("conditional")
    with pytest.raises(AssertionError, match="cache"):
        block.conditioner(x[:, 1:], context, 1)


def test_no_mask_and_no_cache_is_stored() -> None:
    """State is an argument: the weights are all there is to save, before and after decoding with a cache."""
    flow = build("conditional")
    block = flow.blocks[0]
    before = {id(m): set(vars(m)) for m in block.modules()}
    block.conditioner(latents(flow, BATCH)[:, :-1], block.context(), 0, block.new_cache(BATCH))
    flow.encode(images(flow, BATCH))
    assert {id(m): set(vars(m)) for m in block.modules()} == before
    assert not list(block.buffers())
    assert set(flow.state_dict()) == {name for name, _ in flow.named_parameters()}
