"""Whether posteriors are as wide as they say: ranks of the truth, expected coverage, and a classifier between samples.

All of it takes N simulations: a truth θ* drawn from the prior, data simulated from it, and L draws of the posterior
given these data, whoever made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.inference.estimate import Estimate
from tarflow.seeding import seeded_generator

HIDDEN, MOST_HIDDEN = 10, 100
"""Hidden units of the classifier for each number of an event, as in sbi's benchmark, arXiv 2101.04653; and at most."""


def ranks(truth: Tensor, draws: Tensor) -> Tensor:
    """How many of the L draws lie below the truth, in each number: (N, d) in 0 … L, uniform where calibrated.

    Piled up in the middle, posteriors are too wide; at both ends, too narrow; at one end, off to the other side.

    Args:
        truth: (N, d). draws: (N, L, d), independent ones: of Markov chains, thinned to their effective sample size.

    Source: simulation-based calibration, Talts et al., arXiv 1804.06788.

    >>> ranks(torch.zeros(1, 1), torch.tensor([[[-1.0], [2.0], [3.0]]]))
    tensor([[1]])
    """
    _check(truth, draws)
    return (draws < truth.unsqueeze(1)).sum(dim=1)


def uniformity(ranks: Tensor, draws: int, bins: int = 20) -> Tensor:
    """Probability, for each number, that uniform ranks (N, d) of 0 … `draws` would be as uneven: (d,), by χ².

    Below 0.05 for one of twenty numbers that are well calibrated. `bins` are as many as leave 5 ranks in each.
    """
    bins = max(2, min(integer("bins", bins, 2), draws + 1, len(ranks) // 5))
    if ranks.ndim != 2 or len(ranks) < 10:
        raise ValueError(f"ranks: expected (N, d) of at least 10 simulations, got {tuple(ranks.shape)}")
    places = torch.arange(draws + 1, device="cpu", dtype=torch.int64) * bins // (draws + 1)  # the bin of each rank
    expected = places.bincount(minlength=bins).double() * len(ranks) / (draws + 1)
    counts = torch.stack([places[column].bincount(minlength=bins) for column in ranks.cpu().long().T]).double()
    statistic = ((counts - expected).square() / expected).sum(dim=1)
    return torch.special.gammaincc(torch.full_like(statistic, (bins - 1) / 2), statistic / 2)


@dataclass(frozen=True)
class Coverage:
    """How often regions of some level hold the truth.

    Attributes:
        levels, covered, error: (K,), what regions claim, the share of the truths that they hold, and the standard error
            of that share where they are right.
        p_value: that exact posteriors would lie as far off, over all levels (Kolmogorov-Smirnov).
    """

    levels: Tensor
    covered: Tensor
    error: Tensor
    p_value: float

    @classmethod
    def of(cls, credibility: Tensor) -> Coverage:
        """Of the credibility (N,) of the smallest region of each simulation that holds its truth."""
        if credibility.ndim != 1 or len(credibility) < 10:
            raise ValueError(f"expected at least 10 simulations, got {tuple(credibility.shape)}")
        values, count = credibility.double().cpu(), len(credibility)
        levels = torch.linspace(0, 1, 101, device="cpu", dtype=torch.float64)
        covered = torch.stack([(values <= level).double().mean() for level in levels])
        ordered = values.sort().values
        place = torch.arange(count, device="cpu", dtype=torch.float64)
        distance = torch.maximum((place + 1) / count - ordered, ordered - place / count).amax()
        scaled = float(distance) * (count**0.5 + 0.12 + 0.11 / count**0.5)  # Stephens, 1970
        terms = [(-1) ** (k - 1) * 2.718281828459045 ** (-2 * (k * scaled) ** 2) for k in range(1, 101)]
        p_value = min(1.0, max(0.0, 2 * sum(terms))) if scaled > 0.2 else 1.0
        return cls(levels, covered, (levels * (1 - levels) / count).sqrt(), p_value)

    @property
    def excess(self) -> float:
        """Mean of covered - level: below 0 of posteriors that are too sure of themselves, where regions are densest."""
        return float((self.covered - self.levels).mean())


def expected_coverage(log_prob_truth: Tensor, log_prob_draws: Tensor) -> Coverage:
    """Coverage of the regions of highest density: by the posterior's own log-density at the truth and at its draws.

    The smallest such region that holds θ* has the credibility that the share of draws with a higher density says.

    Args:
        log_prob_truth: (N,), log q(θ*|x). log_prob_draws: (N, L), log q of the draws, as `sample_and_log_prob` gives.

    Source: Hermans et al., arXiv 2110.06581.
    """
    if log_prob_draws.ndim != 2 or log_prob_truth.shape != log_prob_draws.shape[:1]:
        raise ValueError(
            f"expected log-densities (N,) and (N, L), got {tuple(log_prob_truth.shape)}, {tuple(log_prob_draws.shape)}"
        )
    higher = (log_prob_draws > log_prob_truth.unsqueeze(1)).double()
    return Coverage.of(_between(higher.sum(dim=1), log_prob_draws.shape[1]))


def tarp(truth: Tensor, draws: Tensor, references: Tensor | None = None, seed: int = 0) -> Coverage:
    """Coverage of balls around random points, which needs no density, and is right for all levels only where all is.

    The credibility of simulation i is the share of its draws that lie nearer to a reference point than its truth does.
    Distances are Euclidean, in units of each number's spread among the truths. Too narrow a posterior is covered too
    often at low levels and too rarely at high ones; one that is off to a side, too rarely or too often throughout.

    Args:
        truth: (N, d). draws: (N, L, d). references: (N, d); None draws them uniformly between the least and the largest
            truth. Where they depend on the data, the test sees more.

    Source: Lemos et al., arXiv 2302.03026.
    """
    _check(truth, draws)
    low, high = truth.amin(dim=0), truth.amax(dim=0)
    if references is None:
        generator = seeded_generator(integer("seed", seed), "tarp")
        share = torch.rand(truth.shape, generator=generator, device="cpu", dtype=torch.float64).to(truth)
        references = low + share * (high - low)
    if references.shape != truth.shape:
        raise ValueError(f"references: expected {tuple(truth.shape)}, got {tuple(references.shape)}")
    spread = truth.std(dim=0).clamp(min=torch.finfo(truth.dtype).tiny)
    own = ((truth - references) / spread).square().sum(dim=1)
    others = ((draws - references.unsqueeze(1)) / spread).square().sum(dim=2)
    return Coverage.of(_between((others < own.unsqueeze(1)).sum(dim=1), draws.shape[1]))


def c2st(x: Tensor, y: Tensor, folds: int = 5, seed: int = 0) -> Estimate:
    """Accuracy of a network that tells samples x (N, …) from y (N, …): 0.5 where it cannot, 1 where they are apart.

    Two hidden layers of 10 units a number, 100 at most, on numbers standardised by x, cross-validated; the error is
    that of the mean over the folds. It takes a thousand samples of each, and what a better network
    would find is open.

    Source: Lopez-Paz and Oquab, arXiv 1610.06545; as in sbi's benchmark, arXiv 2101.04653.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = integer("folds", folds, 2)
    if x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2 * folds:
        raise ValueError(f"expected samples of one shape, {2 * folds} at least, got {tuple(x.shape)}, {tuple(y.shape)}")
    a, b = (part.detach().double().cpu().flatten(1) for part in (x, y))
    scale = a.std(dim=0)
    a, b = ((part - a.mean(dim=0)) / torch.where(scale > 0, scale, 1) for part in (a, b))
    network = _classifier(a.shape[1], seed)
    labels = torch.arange(len(a) + len(b), device="cpu", dtype=torch.int64) >= len(a)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    scores = cross_val_score(network, torch.cat([a, b]).numpy(), labels.numpy(), cv=split, scoring="balanced_accuracy")
    return Estimate.of(torch.from_numpy(scores))


@dataclass(frozen=True)
class LocalTest:
    """Whether posteriors of M observations are told from the exact ones.

    Attributes:
        statistic: (M,), 0 where the classifier cannot tell, at most 1/4. null: (trials, M), what it is of exact ones.
        p_value: (M,), the share of exact ones that would look as far off, 1/(trials + 1) at least.
    """

    statistic: Tensor
    null: Tensor
    p_value: Tensor


def local_c2st(
    truth: Tensor, data: Tensor, drawn: Tensor, observed: Tensor, draws: Tensor, *, trials: int = 20, seed: int = 0
) -> LocalTest:
    """A classifier test of the posteriors of single observations, of which no exact draws are needed.

    A network learns on N simulations to tell (θ*, x) from (θ, x), where θ is one draw of the posterior given x. The
    statistic at an observation is the mean of (P - ½)² over draws given that, with P its chance that one is a truth.
    Where posteriors are exact, truth and draw of a simulation may change places, and nobody would know; so the same is
    trained on `trials` sets in which half of them have.

    Args:
        truth, data, drawn: (N, d), (N, k), (N, d), a thousand simulations at least to see much.
        observed, draws: (M, k), (M, L, d).

    Source: Linhart et al., arXiv 2306.03580.
    """
    trials, count = integer("trials", trials, 1), len(truth)
    sizes = (drawn.shape == truth.shape, len(data) == count, draws.ndim == 3 and len(draws) == len(observed))
    if truth.ndim != 2 or data.ndim != 2 or not all(sizes) or count < 10:
        shapes = ", ".join(str(tuple(part.shape)) for part in (truth, data, drawn, observed, draws))
        raise ValueError(f"expected (N, d), (N, k), (N, d), (M, k), (M, L, d) of 10 simulations at least, got {shapes}")
    truth, data, drawn, observed, draws = (
        part.detach().double().cpu() for part in (truth, data, drawn, observed, draws)
    )
    where = observed.unsqueeze(1).expand(-1, draws.shape[1], -1)
    asked = torch.cat([draws, where], dim=2).flatten(0, 1)
    pairs = torch.cat([torch.cat([truth, drawn]), data.repeat(2, 1)], dim=1)
    mean, scale = pairs.mean(dim=0), pairs.std(dim=0)
    pairs, asked = ((part - mean) / torch.where(scale > 0, scale, 1) for part in (pairs, asked))
    own = torch.arange(2 * count, device="cpu", dtype=torch.int64) < count
    found = []
    for trial in range(trials + 1):
        generator = seeded_generator(integer("seed", seed), "local c2st", trial)
        swapped = torch.rand(count, generator=generator, device="cpu", dtype=torch.float64) < (0.5 if trial else 0.0)
        network = _classifier(pairs.shape[1], seed).fit(pairs.numpy(), (own ^ swapped.repeat(2)).numpy())
        chance = torch.from_numpy(network.predict_proba(asked.numpy())[:, 1]).view(draws.shape[:2])
        found.append((chance - 0.5).square().mean(dim=1))
    null = torch.stack(found[1:])
    return LocalTest(found[0], null, (1 + (null >= found[0]).sum(dim=0)) / (1 + trials))


def _classifier(size: int, seed: int) -> Any:
    """A network that tells rows of so many numbers apart, as sbi's benchmark has it."""
    from sklearn.neural_network import MLPClassifier

    units = min(HIDDEN * size, MOST_HIDDEN)
    return MLPClassifier(
        hidden_layer_sizes=(units, units), max_iter=1000, early_stopping=True, n_iter_no_change=50, random_state=seed
    )


def _between(below: Tensor, draws: int) -> Tensor:
    """Counts of 0 … L draws as shares, each the middle of what it stands for: (k + ½)/(L + 1)."""
    return (below.double() + 0.5) / (draws + 1)


def _check(truth: Tensor, draws: Tensor) -> None:
    if truth.ndim != 2 or draws.ndim != 3 or (len(draws), draws.shape[2]) != tuple(truth.shape):
        raise ValueError(f"expected truths (N, d) and draws (N, L, d), got {tuple(truth.shape)}, {tuple(draws.shape)}")
