"""Importance sampling: what draws of one density q say about another one, p = p̃/Z, known up to its constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.inference.estimate import Estimate
from tarflow.seeding import seeded_generator


class Sampler(Protocol):
    """What draws x (n, …) and says log q(x) (n,) of each: a flow, or one run in its other direction."""

    def sample_and_log_prob(self, n: int, c: Any = None, seed: int = 0) -> tuple[Tensor, Tensor]: ...


LogDensity = Callable[[Tensor], Tensor]
"""Of x (n, …) the logarithm of a density (n,), nats; up to a constant where it is a target."""


def importance(
    sampler: Sampler, log_target: LogDensity, n: int, c: Any = None, seed: int = 0, mask: Tensor | None = None
) -> Weighted:
    """n draws of a flow, weighted so that they stand for the density exp(log_target)/Z.

        x_i ~ q,    log w_i = log p̃(x_i) - log q(x_i)

    Args:
        sampler: a flow, or what `flow.inverse()` gives. c: (n, …) values of its condition.
        log_target: log p̃ (n,) of x (n, …), nats, without its constant. -∞ outside of its support.
        mask: (n, T) booleans, which tokens of a sequence are there: the same in all rows, where they stand for one p.

    Raises:
        ValueError: a log-target of another shape, or one that is NaN or +∞.

    >>> import torch, tarflow
    >>> flow = tarflow.SequenceFlow(tarflow.SequenceConfig(tokens=3, dim=1, width=64, layers=(1,)))
    >>> drawn = tarflow.importance(flow, lambda x: -x.square().sum((1, 2)), 50)
    >>> drawn.x.shape, drawn.log_weight.shape
    (torch.Size([50, 3, 1]), torch.Size([50]))
    """
    padding = {} if mask is None else {"mask": mask}  # which not every sampler knows
    with torch.no_grad():
        x, log_q = sampler.sample_and_log_prob(n, c, seed=seed, **padding)
        log_p = log_target(x)
    if log_p.shape != log_q.shape:
        raise ValueError(f"log_target: expected {tuple(log_q.shape)}, one number a draw, got {tuple(log_p.shape)}")
    return Weighted(x, log_p - log_q)


@dataclass(frozen=True)
class Weighted:
    """Draws x (n, …) with log-weights (n,): together they stand for p, whose constant need not be known.

    Errors are those of the delta method, of independent draws. They are only worth something where q has p's tails:
    where p has mass that q never visits, no weight tells.

    >>> drawn = Weighted(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.0]))
    >>> drawn.effective_sample_size, float(drawn.expectation().mean)
    (2.0, 0.5)
    """

    x: Tensor
    log_weight: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.log_weight.shape)
        if len(shape) != 1 or shape[0] < 1 or len(self.x) != shape[0]:
            raise ValueError(f"log_weight: expected ({len(self.x)},), one number a draw, got {shape}")
        wrong = self.log_weight.isnan() | (self.log_weight == torch.inf)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(f"log_weight: expected numbers below ∞, got {float(self.log_weight[row])} of draw {row}")
        if bool((self.log_weight == -torch.inf).all()):
            raise ValueError("log_weight: no draw lies in the support of the target")

    @property
    def weights(self) -> Tensor:
        """w_i/Σw, (n,)."""
        return self.log_weight.softmax(dim=0)

    @property
    def effective_sample_size(self) -> float:
        """(Σw)²/Σw²: between 1 and n; so many draws of p itself would have the same error, about (Kish)."""
        return float(1 / self.weights.double().square().sum())

    @property
    def log_normaliser(self) -> Estimate:
        """log Z = log mean w, of which -log Z is the free energy; its error is √(1/ESS - 1/n).

        It is too low on average, by about half its error squared (Jensen).
        """
        n = len(self.log_weight)
        mean = self.log_weight.logsumexp(dim=0) - torch.tensor(n, device="cpu", dtype=torch.float64).log().item()
        return Estimate(mean, mean.new_tensor(max(1 / self.effective_sample_size - 1 / n, 0.0)).sqrt())

    def expectation(self, function: Callable[[Tensor], Tensor] | None = None) -> Estimate:
        """E_p[f] = Σ w f(x)/Σ w, self-normalised, with its error √Σ w̄² (f - E f)²; of x itself without a function.

        `function` takes all x (n, …) and gives (n, …).
        """
        values = self.x if function is None else function(self.x)
        if len(values) != len(self.x):
            raise ValueError(f"function: expected {len(self.x)} values, one a draw, got {len(values)}")
        values = values.to(torch.promote_types(values.dtype, self.log_weight.dtype))
        weights = self.weights.view(-1, *[1] * (values.ndim - 1))
        mean = (weights * values).sum(dim=0)
        return Estimate(mean, (weights * (values - mean)).square().sum(dim=0).sqrt())

    def resampled(self, n: int, seed: int = 0) -> Tensor:
        """n draws (n, …) with equal weights, by systematic resampling: of each x, n·w̄ up to one more or less."""
        n = integer("n", n, 1)
        generator = seeded_generator(integer("seed", seed), "resampled")
        offset = torch.rand((), generator=generator, device="cpu", dtype=torch.float64)
        places = (torch.arange(n, device="cpu", dtype=torch.float64) + offset) / n
        total = self.weights.double().cpu().cumsum(dim=0)
        index = torch.searchsorted(total / total[-1], places, right=True).clamp(max=len(total) - 1)
        return self.x[index.to(self.x.device)]
