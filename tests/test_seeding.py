"""Numbers that are a function of their key, and of nothing else."""

from __future__ import annotations

import torch

from tarflow.seeding import seeded_generator, seeded_normal


def draw(*key: int | str) -> torch.Tensor:
    return torch.rand(4, generator=seeded_generator(*key))


def test_the_same_key_is_the_same_stream_and_another_is_another() -> None:
    keys = [(0, 1), (1, 0), (0, "1"), (0, 1, 0), ("0/1",), (0, "a", 1), (0, "a1")]
    for key in keys:
        assert torch.equal(draw(*key), draw(*key))
        assert torch.equal(seeded_normal((3,), *key), seeded_normal((3,), *key))
    for numbers in ([draw(*key) for key in keys], [seeded_normal((4,), *key) for key in keys]):
        assert len({tuple(row.tolist()) for row in numbers}) == len(keys)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draw(0), seeded_normal((5,), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_is_standard_normal() -> None:
    x = torch.cat([seeded_normal((1000,), "normal", k) for k in range(50)])
    assert x.dtype == torch.float64
    assert abs(float(x.mean())) < 0.02 and abs(float(x.var()) - 1) < 0.03
    empirical = x.sort().values
    exact = torch.special.ndtr(empirical)
    steps = torch.arange(1, len(x) + 1) / len(x)
    assert float((exact - steps).abs().max()) < 1.63 / len(x) ** 0.5  # Kolmogorov-Smirnov at 1 %


def test_all_64_bits_count() -> None:
    """Keys whose digests share 32 bits would be one image twice under a single seed."""
    rows = torch.stack([seeded_normal((2,), 0, k) for k in range(20_000)])
    assert len({tuple(row) for row in rows.tolist()}) == len(rows)
