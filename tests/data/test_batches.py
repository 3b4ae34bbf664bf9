"""The seeded, step-indexed order of the images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tarflow.data import batches
from tarflow.data.batches import batch_indices
from tarflow.seeding import seeded_permutation

calm = settings(deadline=None, max_examples=50)


@calm
@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 3))
def test_batches_laid_end_to_end_are_epochs_laid_end_to_end(size: int, batch_size: int, seed: int) -> None:
    """Whether a batch divides the epoch, straddles two, or is larger than one."""
    steps = -(-3 * size // batch_size)
    row = torch.cat([batch_indices(size, batch_size, step, seed) for step in range(steps)])
    assert row.dtype == torch.int64
    assert len(row) == steps * batch_size
    for epoch in range(3):
        seen = row[epoch * size : (epoch + 1) * size]
        assert torch.equal(seen.sort().values, torch.arange(size))


@calm
@given(st.integers(0, 10**9), st.integers(0, 2**63))
def test_a_batch_depends_on_nothing_that_came_before(step: int, seed: int) -> None:
    first = batch_indices(100, 30, step, seed)
    batches._epoch.cache_clear()
    torch.manual_seed(step % 1000)
    state = torch.get_rng_state()
    again = batch_indices(100, 30, step, seed)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched


@pytest.mark.parametrize("batch_size", [10, 4])
def test_writing_into_a_batch_changes_no_other(batch_size: int) -> None:
    before = batch_indices(10, batch_size, 0, seed=0)
    kept = before.clone()
    before.fill_(-1)
    assert torch.equal(batch_indices(10, batch_size, 0, seed=0), kept)


def test_another_device_gets_the_order_of_an_epoch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    batches._epoch.cache_clear()
    moved = []
    real = batches.seeded_permutation
    monkeypatch.setattr(batches, "seeded_permutation", lambda *a: moved.append(a) or real(*a))
    for step in range(5):  # two batches an epoch
        assert batch_indices(8, 4, step, seed=0, device="meta").device.type == "meta"
    assert len(moved) == 3
    assert batch_indices(8, 4, 0, seed=0).device.type == "cpu"


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """With seed + epoch the second epoch of one seed would be the first of the next; with 32 bits, seed 2^32 seed 0."""
    orders = {tuple(batch_indices(50, 50, epoch, seed).tolist()) for seed in (0, 1, 2, 2**32, -1) for epoch in range(4)}
    assert len(orders) == 20


def test_the_order_is_a_fair_one() -> None:
    """Over 2,000 epochs each image comes first about equally often: 200 times, give or take 5 standard deviations."""
    first = torch.stack([seeded_permutation(10, "epoch", 0, epoch)[0] for epoch in range(2000)])
    assert ((torch.bincount(first, minlength=10) - 200).abs() < 5 * (200 * 0.9) ** 0.5).all()


def test_purposes_do_not_share_an_order() -> None:
    assert not torch.equal(seeded_permutation(50, "epoch", 0), seeded_permutation(50, "held out", 0))


@pytest.mark.parametrize("arguments", [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_impossible_arguments_are_errors(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected size >= 1"):
        batch_indices(*arguments, seed=0)
