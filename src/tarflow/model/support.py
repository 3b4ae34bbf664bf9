"""Where the numbers of an event may lie, and the invertible map from there to all real numbers, standardised.

A new kind of support is a class here, or in a file of its own, and one line in `SUPPORTS`.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from tarflow.fields import ConfigError


class Support(ABC):
    """An open set of numbers, u = map(x) from it onto all real numbers, and log|∂u/∂x|.

    Attributes:
        constraint: the set in torch's words.
    """

    constraint: Constraint

    @abstractmethod
    def contains(self, x: Tensor) -> Tensor:
        """Whether each of the numbers x has a density other than 0; not NaN, and none that is infinite."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers x of the set to u, and log|∂u/∂x|, of the same shape."""

    @abstractmethod
    def inverse(self, u: Tensor) -> Tensor:
        """Real numbers u to x, which rounding does not bring to an end of the set."""


class Real(Support):
    """All numbers: u = x."""

    constraint = constraints.real

    def contains(self, x: Tensor) -> Tensor:
        return x.isfinite()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros_like(x)

    def inverse(self, u: Tensor) -> Tensor:
        return u


class Positive(Support):
    """Numbers above 0: u = log x, log|∂u/∂x| = -log x."""

    constraint = constraints.positive

    def contains(self, x: Tensor) -> Tensor:
        return (x > 0) & x.isfinite()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = x.log()
        return u, -u

    def inverse(self, u: Tensor) -> Tensor:
        return u.exp().clamp(min=torch.finfo(u.dtype).tiny)


class Interval(Support):
    """Numbers between two others: u = log(x - low) - log(high - x), log|∂u/∂x| = log(high - low) - log(x - low) - …"""

    def __init__(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"interval: expected a lower number, then a higher one, got {low} and {high}")
        self.low, self.high = low, high
        self.constraint = constraints.interval(low, high)

    def contains(self, x: Tensor) -> Tensor:
        return (x > self.low) & (x < self.high)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        below, above = (x - self.low).log(), (self.high - x).log()
        return below - above, math.log(self.high - self.low) - below - above

    def inverse(self, u: Tensor) -> Tensor:
        span = self.high - self.low
        # From the nearer end, where the numbers are dense.
        x = torch.where(u < 0, self.low + span * torch.sigmoid(u), self.high - span * torch.sigmoid(-u))
        low, high = (torch.full_like(x[..., :1], end) for end in (self.low, self.high))
        return x.clamp(torch.nextafter(low, high), torch.nextafter(high, low))  # the ends have a density of 0


SUPPORTS: dict[str, Callable[..., Support]] = {  # of what is behind colons
    "real": Real,
    "positive": Positive,
    "interval": lambda low, high: Interval(float(low), float(high)),  # interval:LOW:HIGH
}


def make_support(support: str) -> Support:
    """The support that a config names, such as "positive" or "interval:0:1"; ConfigError where there is none."""
    name, *arguments = support.split(":")
    try:
        return SUPPORTS[name](*arguments)
    except (KeyError, TypeError, ValueError):
        expected = f"one of {', '.join(SUPPORTS)} (interval:LOW:HIGH)"
        raise ConfigError(f"support: expected {expected}, got {support!r}") from None


def check_supports(support: str | Sequence[str], count: int) -> None:
    """Raise ConfigError unless a config names one support for all of `count` numbers, or one for each."""
    if not isinstance(support, str) and len(support) != count:
        raise ConfigError(f"support: expected one for all, or one for each of {count} numbers, got {list(support)}")
    for name in {support} if isinstance(support, str) else set(support):
        make_support(name)


class Preprocessing(nn.Module):
    """v = (u - mean) / deviation, u = map(x), number by number: from numbers x with a support each to real ones.

        log|∂v/∂x| = log|∂u/∂x| - log deviation

    Args:
        support: the name of one for all, or one for each of `count` numbers.
        standardise: whether there are a mean and a deviation; 0 and 1 until `fit` has seen data.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, support: str | Sequence[str], count: int, standardise: bool, **made: Any) -> None:
        super().__init__()
        self.names = (support,) * count if isinstance(support, str) else tuple(support)
        self.standardise = standardise
        runs = [(name, len(list(run))) for name, run in itertools.groupby(self.names)]
        self.supports, self.lengths = [make_support(name) for name, _ in runs], [length for _, length in runs]
        if standardise:
            self.register_buffer("mean", torch.zeros(count, **made))
            self.register_buffer("deviation", torch.ones(count, **made))

    @property
    def constraint(self) -> Constraint:
        """The support of a row of numbers, of which each is still checked by itself."""
        found = [support.constraint for support in self.supports]
        return found[0] if len(found) == 1 else constraints.cat(found, dim=-1, lengths=self.lengths)

    @property
    def is_identity(self) -> bool:
        """Whether nothing is done, and nothing can be fitted."""
        return not self.standardise and set(self.names) == {"real"}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (…, K) to v and log|∂v/∂x|, (…, K) each.

        Where x is outside of its support v is ∞, and NaN where x is NaN; there is no gradient from there.
        """
        found = []
        for support, part in self._parts(x):
            inside = support.contains(part)
            u, slope = support.forward(torch.where(inside, part, support.inverse(torch.zeros_like(part))))
            outside = torch.where(part.isnan(), torch.nan, torch.inf).to(u.dtype)
            found.append((torch.where(inside, u, outside), torch.where(inside, slope, 0)))
        v, slope = (torch.cat(parts, dim=-1) for parts in zip(*found, strict=True))
        if self.standardise:
            deviation = self.deviation.to(v.dtype)
            v, slope = (v - self.mean.to(v.dtype)) / deviation, slope - deviation.log()
        return v, slope

    def inverse(self, v: Tensor) -> Tensor:
        """v (…, K) to x (…, K)."""
        if self.standardise:
            v = torch.addcmul(self.mean.to(v.dtype), v, self.deviation.to(v.dtype))
        return torch.cat([support.inverse(part) for support, part in self._parts(v)], dim=-1)

    def _parts(self, x: Tensor) -> Iterator[tuple[Support, Tensor]]:
        """The supports, each with the numbers (…, k) in succession that have it."""
        return zip(self.supports, x.split(self.lengths, dim=-1), strict=True)

    @torch.no_grad()
    def fit(self, x: Tensor, name: str = "x") -> None:
        """Keep mean and deviation of map(x) over rows x (M, K). ValueError names a number that has no density."""
        x = x.detach().to(torch.float64)
        u = Preprocessing(self.names, len(self.names), False)(x)[0]
        outside = ~u.isfinite()
        if bool(outside.any()):
            row, number = outside.nonzero()[0].tolist()
            raise ValueError(
                f"{name}: expected numbers of the support {self.names[number]}, got {x[row, number].item():g} in row "
                f"{row}, number {number}"
            )
        if not self.standardise:
            return
        if not len(u):
            raise ValueError(f"{name}: expected a row at least, got none")
        deviation, mean = torch.std_mean(u, dim=0, correction=0)
        constant = deviation <= torch.finfo(torch.float32).tiny
        if bool(constant.any()):
            number = int(constant.nonzero()[0])
            raise ValueError(f"{name}: number {number} is {x[0, number].item():g} in every row: it has no density")
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def __repr__(self) -> str:
        """In a few words, such as "real, standardised"."""
        return ", ".join([*dict.fromkeys(self.names), *(["standardised"] if self.standardise else [])])
