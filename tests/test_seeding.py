"""Numbers that are a function of their key, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from flow_cases import randomise
from tarflow import ConfigError, TarFlow, TarFlowConfig, resample, sample, trace
from tarflow.config import DataConfig, TrainingConfig, to_dict
from tarflow.data.batches import batch_indices
from tarflow.data.sets import ImageSet, seeded_split
from tarflow.evaluation.likelihood.anomalies import shuffled
from tarflow.evaluation.likelihood.evaluate import evaluate_likelihood
from tarflow.evaluation.likelihood.scores import class_scores
from tarflow.evaluation.likelihood.scoring import Scoring
from tarflow.evaluation.quality.distances import kernel_distance
from tarflow.measure import Measure
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


INTEGERS = [np.int64(7), np.uint8(7), np.array(7), torch.tensor(7), torch.tensor(7, dtype=torch.int16)]
NO_INTEGERS = [True, np.True_, torch.tensor(True), 7.0, np.float64(7), torch.tensor(7.0), None, [7], torch.tensor([7])]


@pytest.mark.parametrize("seed", INTEGERS, ids=repr)
def test_an_integer_of_any_kind_is_its_value(seed: Any) -> None:
    """NumPy 2 writes `np.int64(7)`, and a key that is hashed as it is written would be another one."""
    assert torch.equal(draw(seed, "a"), draw(7, "a"))
    assert torch.equal(seeded_normal((3,), "a", seed), seeded_normal((3,), "a", 7))
    assert torch.equal(draw(np.str_("a")), draw("a"))


@pytest.mark.parametrize("seed", NO_INTEGERS, ids=repr)
def test_what_is_no_integer_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed: expected a whole number"):
        seeded_generator(seed)
    with pytest.raises(ValueError, match="seed: expected a whole number"):
        seeded_normal((2,), seed)


def flow() -> TarFlow:
    return randomise(TarFlow(TarFlowConfig(4, channels=1, patch_size=2, width=16, head_dim=8, layers=(1, 1))))


PIXELS = (torch.arange(64) % 16).to(torch.uint8).view(4, 1, 4, 4)
IMAGES = ImageSet(PIXELS, torch.arange(4), tuple("abcd"), 16, tuple("abcd"))
SEEDED: dict[str, Callable[[Any], object]] = {  # everything that takes a seed, as a value that can be compared
    "sample": lambda seed: sample(flow(), 2, seed=seed, solver="sequential"),
    "trace": lambda seed: trace(flow(), 1, seed=seed)[-1],
    "resample": lambda seed: resample(flow(), torch.zeros(1, 1, 4, 4), 2, seed=seed),
    "likelihood": lambda seed: json.dumps(
        evaluate_likelihood(flow(), PIXELS, scoring=Scoring(Measure(16), 1, seed)).to_dict()
    ),
    "maps": lambda seed: class_scores(flow(), PIXELS, scoring=Scoring(Measure(16), 1, seed), maps=True).maps,
    "shuffled": lambda seed: shuffled(PIXELS, 16, seed),
    "kernel distance": lambda seed: kernel_distance(torch.eye(8), torch.eye(8).square() + 1, size=2, seed=seed),
    "batches": lambda seed: batch_indices(9, 4, 1, seed),
    "choice": lambda seed: IMAGES.choice(2, seed).names,
    "split": lambda seed: torch.cat(seeded_split("x", 9, 0.3, seed)),
    "config": lambda seed: json.dumps(to_dict(TrainingConfig(seed=seed))),
    "data config": lambda seed: json.dumps(to_dict(DataConfig(split_seed=seed))),
}


@pytest.mark.parametrize("name", SEEDED)
def test_every_seed_is_taken_by_its_value(name: str) -> None:
    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b

    for other in (np.int64(1), torch.tensor(1)):
        assert same(SEEDED[name](other), SEEDED[name](1))
    for wrong in (True, np.True_, "1", None, 1.5):  # True is 1 to a cache
        with pytest.raises(ValueError, match="seed: expected a whole number"):
            SEEDED[name](wrong)


def test_a_seed_that_torch_cannot_hold_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match="seed: expected a number of 64 bits"):
        TrainingConfig(seed=1 << 64)
