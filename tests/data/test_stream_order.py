"""The order of a stream: every image once an epoch, a function of (seed, epoch), whatever was asked before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tarflow.data.stream_order import StreamOrder

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def places(order: StreamOrder, batch_size: int, step: int, rows: slice = slice(None)) -> list[tuple[int, ...]]:
    return [tuple(place.tolist()) for segment in order.batch(batch_size, step, rows) for place in segment.places]


@given(SIZES, st.integers(1, 30), st.integers(1, 25), st.integers(0, 3))
def test_an_epoch_has_every_image_once(sizes: Sequence[int], window: int, batch_size: int, seed: int) -> None:
    order = StreamOrder(sizes, window, seed)
    steps = -(-3 * order.total // batch_size)
    seen = [place for step in range(steps) for place in places(order, batch_size, step)]
    whole = sorted((group, row) for group, size in enumerate(sizes) for row in range(size))
    for epoch in range(3):
        assert sorted(seen[epoch * order.total : (epoch + 1) * order.total]) == whole


@given(SIZES, st.integers(1, 30), st.integers(1, 25), st.integers(0, 40))
def test_any_step_is_the_same_from_anywhere(sizes: Sequence[int], window: int, batch_size: int, step: int) -> None:
    walked = StreamOrder(sizes, window, seed=1)
    for before in range(step):
        walked.batch(batch_size, before)
    assert places(walked, batch_size, step) == places(StreamOrder(sizes, window, seed=1), batch_size, step)


@given(SIZES, st.integers(1, 30), st.integers(1, 25), st.integers(1, 6))
def test_processes_together_see_the_batch(sizes: Sequence[int], window: int, batch_size: int, ranks: int) -> None:
    order = StreamOrder(sizes, window, seed=2)
    cuts = [rank * batch_size // ranks for rank in range(ranks + 1)]
    parts = [places(order, batch_size, 3, slice(a, b)) for a, b in itertools.pairwise(cuts)]
    assert [place for part in parts for place in part] == places(order, batch_size, 3)


def test_a_window_is_of_neighbours_in_the_order_of_the_epoch_and_no_larger_than_it_must_be() -> None:
    order = StreamOrder([10] * 40, window=50, seed=0)
    windows = {}
    for step in range(400):
        for segment in order.batch(1, step):
            assert int(segment.places[0, 0]) in segment.groups
            windows[segment.window] = segment.groups
    assert [len(groups) for groups in windows.values()] == [5] * 8
    assert sorted(g for groups in windows.values() for g in groups) == list(range(40))
    assert next(iter(windows.values())) != tuple(range(5)), "the groups are not shuffled"
    rest = StreamOrder([10] * 12, window=50, seed=0)  # 50, 50 and 20: less than half of one goes with the last
    ends = [len(groups) for groups in {s.window: s.groups for k in range(120) for s in rest.batch(1, k)}.values()]
    assert ends == [5, 7]


def test_within_a_window_images_of_all_its_groups_mix() -> None:
    order = StreamOrder([100] * 6, window=300, seed=0)
    for step in range(12):
        counts = torch.bincount(torch.tensor([group for group, _ in places(order, 50, step)]), minlength=6)
        assert sorted(counts.tolist())[:3] == [0, 0, 0] and int((counts > 5).sum()) == 3


def test_epochs_and_seeds_differ() -> None:
    order = StreamOrder([5] * 8, window=10, seed=0)
    first, second = (places(order, 40, epoch) for epoch in range(2))
    assert first != second and sorted(first) == sorted(second)
    assert first != places(StreamOrder([5] * 8, window=10, seed=1), 40, 0)


@pytest.mark.parametrize(("sizes", "window"), [([], 1), ([3, 0], 1), ([3], 0)])
def test_nothing_is_no_order(sizes: list[int], window: int) -> None:
    with pytest.raises(ValueError, match="expected groups of at least one image and a window >= 1"):
        StreamOrder(sizes, window, 0)


@pytest.mark.parametrize(
    ("batch_size", "step", "rows"), [(0, 0, slice(None)), (4, -1, slice(None)), (4, 0, slice(0, 4, 2))]
)
def test_a_batch_is_of_neighbours(batch_size: int, step: int, rows: slice) -> None:
    with pytest.raises(ValueError, match="expected batch_size >= 1, step >= 0 and neighbours"):
        StreamOrder([3], 1, 0).batch(batch_size, step, rows)
