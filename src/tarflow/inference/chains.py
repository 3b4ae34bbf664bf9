"""Markov chains: how much they are worth, and the one whose proposals are independent draws."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from tarflow.fields import integer, real
from tarflow.inference.weights import Weighted
from tarflow.seeding import seeded_generator


@dataclass(frozen=True)
class Chains:
    """What Markov chains visited.

    Attributes:
        draws: (steps, chains, …). acceptance: (chains,), the share of proposals that were taken.
    """

    draws: Tensor
    acceptance: Tensor

    @property
    def effective_sample_size(self) -> Tensor:
        """Of each number of a draw, (…): see `effective_sample_size`."""
        return effective_sample_size(self.draws)

    @property
    def rhat(self) -> Tensor:
        """Of each number of a draw, (…): see `rhat`."""
        return rhat(self.draws)


def independence_metropolis(drawn: Weighted, chains: int = 1, seed: int = 0) -> Chains:
    """Metropolis-Hastings with independent draws of a flow as proposals: exact samples of the target in the limit.

        accept x' after x with probability min(1, w(x')/w(x)),    w = p̃/q

    The n draws are dealt to `chains` in turn; each begins with its first draw of a finite weight. No draw is evaluated
    again, so that the chain costs nothing beside the draws.

    Args:
        drawn: what `importance` gave. chains: a divisor of n.

    Source: Tierney, Annals of Statistics 22 (1994); for flows, arXiv 1904.12072.

    >>> import torch
    >>> chain = independence_metropolis(Weighted(torch.arange(6.0), torch.zeros(6)))
    >>> chain.draws.flatten(), chain.acceptance
    (tensor([0., 1., 2., 3., 4., 5.]), tensor([1.], dtype=torch.float64))
    """
    n, chains = len(drawn.x), integer("chains", chains, 1)
    if n % chains or n == chains:
        raise ValueError(f"chains: expected a divisor of the {n} draws, of two steps at least, got {chains}")
    steps = n // chains
    log_weight = drawn.log_weight.double().cpu().view(steps, chains)
    generator = seeded_generator(integer("seed", seed), "independence")
    log_u = torch.rand(steps, chains, generator=generator, device="cpu", dtype=torch.float64).log()
    at = torch.zeros(chains, device="cpu", dtype=torch.int64)
    column = torch.arange(chains, device="cpu", dtype=torch.int64)
    here, visited, accepted = log_weight[0].clone(), [at], torch.zeros(chains, device="cpu", dtype=torch.float64)
    for step in range(1, steps):
        taken = log_u[step] < log_weight[step] - here
        taken |= (here == -torch.inf) & (log_weight[step] > -torch.inf)  # a start outside of the support
        at, here = torch.where(taken, step, at), torch.where(taken, log_weight[step], here)
        accepted += taken
        visited.append(at)
    index = torch.stack(visited) * chains + column
    return Chains(drawn.x[index.to(drawn.x.device)], accepted / (steps - 1))


def effective_sample_size(draws: Tensor) -> Tensor:
    """Independent draws that chains (steps, chains, …) are worth for a mean, (…); at most steps·chains·log10 of that.

        ESS = steps·chains / (1 + 2 Σ_t ρ_t)

    ρ_t combines the chains, so that those which have not met count little; the sum ends where ρ_2t + ρ_2t+1 is no
    longer positive, and those sums are made to fall (Geyer). Constant draws have none: NaN.

    Source: Vehtari et al., Bayesian Analysis 16 (2021), section 3.2, arXiv 1903.08008.
    """
    x, steps, chains = _checked(draws)
    centred = x - x.mean(dim=0)
    spectrum = torch.fft.rfft(centred, n=2 * steps, dim=0)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), n=2 * steps, dim=0)[:steps].real / steps
    mean_covariance = covariance.mean(dim=1)  # (steps, numbers), over the chains
    within = mean_covariance[0] * steps / (steps - 1)
    total = mean_covariance[0] + (x.mean(dim=0).var(dim=0) if chains > 1 else 0)  # (steps-1)/steps·within + between
    rho = 1 - (within - mean_covariance) / total
    rho[0] = 1
    pairs = rho[: steps - steps % 2].view(steps // 2, 2, -1).sum(dim=1)
    pairs = pairs.clamp(min=0) * (pairs > 0).long().cumprod(dim=0)
    pairs = pairs.cummin(dim=0).values
    time = (2 * pairs.sum(dim=0) - 1).clamp(min=1 / torch.log10(x.new_tensor(float(max(steps * chains, 10)))))
    ess = steps * chains / time
    return torch.where(total > 0, ess, torch.nan).reshape(draws.shape[2:]).to(draws.device)


def rhat(draws: Tensor) -> Tensor:
    """How much wider all chains (steps, chains, …) lie than each half of one, (…): 1 where they have mixed.

        R̂ = √((N-1)/N + B/W),    over halves of length N, B the variance of their means, W the mean of their variances

    of the ranks of the draws among all, as quantiles of a normal distribution, so that heavy tails do not matter. What
    is constant has none: NaN. `rhat_bound` says how large it may be.

    Source: Vehtari et al., Bayesian Analysis 16 (2021), sections 3.1 and 4.1, arXiv 1903.08008.
    """
    x, steps, _ = _checked(draws)
    half = steps // 2
    halves = torch.cat([x[:half], x[steps - half :]], dim=1)  # (half, 2·chains, numbers)
    halves = _normal_scores(halves.flatten(0, 1)).view_as(halves)
    within, between = halves.var(dim=0).mean(dim=0), halves.mean(dim=0).var(dim=0)
    return ((half - 1) / half + between / within).sqrt().reshape(draws.shape[2:]).to(draws.device)


def rhat_bound(steps: int, chains: int, numbers: int = 1, level: float = 0.99) -> float:
    """What the largest `rhat` of so many numbers stays below with probability `level` where all draws are independent.

        N·B/W ~ F(m-1, m·(N-1)),    m = 2·chains halves of N = steps // 2 draws,    at 1 - (1-level)/numbers

    for means of normal draws, and by the union over the numbers. 1.01, which is asked for elsewhere, is what hundreds
    of draws meet. Draws that are not independent, and as much worth as fewer of them, have the bound of so many.

    Source: Gelman and Rubin, Statistical Science 7 (1992), section 3; quantiles of F by Paulson's approximation, from
    which they are off by some percent.

    >>> [round(rhat_bound(steps, chains=4, numbers=400), 2) for steps in (10, 20, 100, 1000)]
    [1.52, 1.22, 1.04, 1.0]
    """
    steps, chains, numbers = integer("steps", steps, 4), integer("chains", chains, 1), integer("numbers", numbers, 1)
    level = real("level", level, "a number between 0 and 1", lambda value: 0 < value < 1)
    half, halves = steps // 2, 2 * chains
    a, b = 2 / 9 / (halves - 1), 2 / 9 / (halves * (half - 1))
    z = statistics.NormalDist().inv_cdf(1 - (1 - level) / numbers)
    # (1 - b)·c - (1 - a) = z·√(b·c² + a) for c = F^(1/3)
    square, linear = (1 - b) ** 2 - z**2 * b, (1 - a) * (1 - b)
    if square <= 0:
        return math.inf
    root = (linear + math.sqrt(linear**2 - square * ((1 - a) ** 2 - z**2 * a))) / square
    return math.sqrt((half - 1) / half + root**3 / half)


def _normal_scores(x: Tensor) -> Tensor:
    """x (n, d) as Φ⁻¹((rank - 3/8)/(n + 1/4)), ranks in each column, the mean one of equal numbers."""
    columns = x.mT.contiguous()
    ordered = columns.sort(dim=1).values
    below, up_to = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    rank = (below + up_to + 1).mT.to(x.dtype) / 2
    return torch.special.ndtri((rank - 0.375) / (len(x) + 0.25))


def _checked(draws: Tensor) -> tuple[Tensor, int, int]:
    """The draws as (steps, chains, numbers), float64 on the CPU."""
    if draws.ndim < 2 or draws.shape[0] < 4 or draws.shape[1] < 1:
        raise ValueError(f"draws: expected (steps, chains, …) of at least 4 steps, got {tuple(draws.shape)}")
    steps, chains = draws.shape[:2]
    return draws.detach().double().cpu().reshape(steps, chains, -1), steps, chains
