"""Places of scores, and what the columns of `tarflow score` are made of."""

from __future__ import annotations

import math

import torch

from tarflow.evaluation.likelihood.table import percentiles, ranks


def test_places_of_equal_scores_are_the_best_of_theirs_and_percentiles_halve_them() -> None:
    scores = torch.tensor([2.0, 1.0, 2.0, -math.inf, 5.0, 1.0], dtype=torch.float64)
    assert ranks(scores).tolist() == [1 + sum(other > score for other in scores) for score in scores]
    reference = [1.0, 1.0, 2.0, 3.0]
    by_hand = [100 * (sum(r < s for r in reference) + sum(r == s for r in reference) / 2) / 4 for s in scores]
    assert percentiles(scores, torch.tensor(reference)).tolist() == by_hand
