"""The architecture of a flow on sequences, and of one on vectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from tarflow.architecture import LARGEST, bound_of, check_aligned, check_network, check_transforms, transform_entry
from tarflow.fields import check, coerce_fields, option
from tarflow.model.base import BASES
from tarflow.model.order import make_order
from tarflow.model.support import check_supports


@dataclass(frozen=True)
class SequenceConfig:
    """The architecture of a `SequenceFlow`: everything that decides the shapes of its weights, and its orders.

    >>> config = SequenceConfig(tokens=16, dim=4, width=64, layers=(1, 1), orders=("raster", "random:3"))
    >>> config.orders, config.transforms, config.base
    (('raster', 'random:3'), ('affine', 'affine'), 'normal')
    """

    tokens: int = option(help="tokens T of a sequence; at least 2 without start_token, as the first is not transformed")
    dim: int = option(help="numbers D in a token")
    width: int = option(help="channels of the Transformers, a multiple of the head dimension")
    layers: tuple[int, ...] = option(help="Transformer layers of each block, one entry a block")
    condition: str = option(
        "none",
        help="what the density is conditioned on: none, classes:NUMBER, vector:N (numbers), tokens:T:D (a sequence), "
        "image:C:H:W:P (an image, in patches of P), aligned:T:D (numbers of each token), aligned-image:C:H:W:P (an "
        "image whose patches lie where those of x do), or several joined by +",
    )
    orders: tuple[str | tuple[int, ...], ...] = option(
        (), help="order of each block: raster, flipped, random:SEED or a permutation; raster and flipped in turn"
    )
    transforms: tuple[str, ...] = option((), help="transform of each block, such as affine or additive; affine for all")
    log_scale_bound: float | Literal["auto", "none"] | None = option(
        "auto", help="bound a of the log-scale, a*tanh(v/a); auto: 4 where there is a log-scale; none: unbounded"
    )
    bins: int = option(8, help="bins of a spline")
    interval: float = option(1.0, help="a spline bends numbers from -interval to interval")
    start_token: bool = option(False, help="predict the first token too, from a learned start token")
    base: str = option(
        "auto", help="normal, or followed (the variance follows the latents); auto: followed where nothing scales"
    )
    rotary: bool = option(False, help="rotary positions in attention, beside the learned ones")
    lattice: tuple[int, ...] = option((), help="sizes of the axes along which the tokens lie in raster order; a line")
    support: str | tuple[str, ...] = option(
        "real", help="where numbers lie: real, positive or interval:LOW:HIGH, for all or for each number of a token"
    )
    standardise: bool = option(
        True, help="standardise the numbers of a token by the mean and deviation that event.fit(x) has found"
    )
    head_dim: int = option(64, help="channels of an attention head")
    expansion: int = option(4, help="width of the MLP over the width of the Transformer")

    def __post_init__(self) -> None:
        coerce_fields(self)
        blocks = len(self.layers)
        set_field = object.__setattr__
        check_network(self)
        least = 1 if self.start_token else 2
        check(least <= self.tokens <= LARGEST, "tokens", f"{least} to {LARGEST}", self.tokens)
        check(1 <= self.dim <= LARGEST, "dim", f"1 to {LARGEST}", self.dim)
        set_field(self, "orders", self.orders or tuple(("raster", "flipped")[i % 2] for i in range(blocks)))
        set_field(self, "transforms", self.transforms or ("affine",) * blocks)
        set_field(self, "lattice", self.lattice or (self.tokens,))
        for name in ("orders", "transforms"):
            check(len(getattr(self, name)) == blocks, name, f"one for each of {blocks} blocks", getattr(self, name))
        check_transforms(self)
        for order in self.orders:
            make_order(order, self.tokens)
        check_aligned(self.condition, self.tokens)
        check_supports(self.support, self.dim)
        check(math.prod(self.lattice) == self.tokens, "lattice", f"a product of {self.tokens} tokens", self.lattice)
        part = 2 * len(self.lattice)
        check(
            not self.rotary or self.head_dim % part == 0,
            "head_dim",
            f"a multiple of {part} with rotary positions",
            self.head_dim,
        )
        scales = any(transform_entry(name).scales for name in self.transforms)
        set_field(self, "base", ("normal" if scales else "followed") if self.base == "auto" else self.base)
        check(self.base in BASES, "base", f"auto or one of {', '.join(BASES)}", self.base)
        set_field(self, "log_scale_bound", bound_of(self.log_scale_bound, scales))

    @property
    def slots(self) -> int:
        """Places of the sequence that a block works on: the tokens, after the start token where there is one."""
        return self.tokens + self.start_token

    @property
    def bound(self) -> float | None:
        """The bound a of the log-scale, None where there is none: `log_scale_bound`, whose words are numbers by now."""
        assert not isinstance(self.log_scale_bound, str)
        return self.log_scale_bound


ALONE = 16
"""Numbers of a vector that are a token each; with more, attention over single numbers is slow for what it gains."""
TOGETHER = range(3, 9)
"""Numbers given others, or tokens, that are one token, of one number after the other: there are more steps in a given
time, as the network says once what the condition means, and each brings more. Five of SLCP come to 4.3 nats as one
token in 10 seconds, and to 7.0 as five; four given an image of 16x16 to 1.5 and 2.3. Two of two moons come to -3.2 and
-3.3; ten of a Gaussian are soon learned by heart as one.
"""
FEW = 4
"""Tokens of a longer vector, at most: on 30 numbers, 3 of 10 came to 4.7 nats in the time in which 30 came to 21."""


def default_tokens(dim: int, given: bool = False) -> int:
    """How many tokens a vector is cut into where nobody says; `given` something, a short one is not cut.

    >>> [default_tokens(dim) for dim in (2, 16, 17, 30, 784)]
    [2, 16, 1, 3, 4]
    >>> [default_tokens(dim, given=True) for dim in (2, 3, 8, 9, 30)]
    [2, 1, 1, 9, 3]
    """
    if given and dim in TOGETHER:
        return 1
    if dim <= ALONE:
        return dim
    return next(count for count in range(FEW, 0, -1) if dim % count == 0)


@dataclass(frozen=True)
class VectorConfig:
    """The architecture of a `VectorFlow`. The defaults did well on 2 to 30 numbers (`benchmarks.vectors`).

    >>> config = VectorConfig(6, tokens=3)
    >>> config.sequence.dim, config.sequence.transforms[0]
    (2, 'spline-by-number')
    """

    dim: int = option(help="numbers N in a vector")
    tokens: int | None = option(
        None,
        help="tokens that N numbers are cut into, a divisor of N; up to 16 each number is one, but 3 to 8 are one "
        "together where the condition is numbers, an image or tokens, and there are no orders; beyond 16, 4 at most",
    )
    condition: str | int = option(
        "none", help="what the density is conditioned on, as in a SequenceConfig; a number n is vector:n"
    )
    width: int = option(32, help="channels of the Transformers, a multiple of the head dimension")
    layers: tuple[int, ...] = option((1,) * 4, help="Transformer layers of each block, one entry a block")
    orders: tuple[str | tuple[int, ...], ...] = option(
        (), help="order of each block: raster, flipped, random:SEED or a permutation; raster and flipped in turn"
    )
    transform: str = option(
        "auto", help="of all blocks; auto: spline, or spline-by-number where a token has several numbers"
    )
    bins: int = option(8, help="bins of a spline")
    interval: float = option(4.0, help="a spline bends numbers from -interval to interval, in deviations")
    log_scale_bound: float | Literal["auto", "none"] | None = option(
        "auto", help="bound a of the log-scale, a*tanh(v/a); auto: 4 where there is a log-scale; none: unbounded"
    )
    start_token: bool = option(True, help="predict the first token too, from a learned start token")
    support: str | tuple[str, ...] = option(
        "real", help="where numbers lie: real, positive or interval:LOW:HIGH, for all or for each number"
    )
    standardise: bool = option(True, help="standardise by the mean and deviation that event.fit(x) has found")
    head_dim: int = option(16, help="channels of an attention head")
    expansion: int = option(4, help="width of the MLP over the width of the Transformer")

    def __post_init__(self) -> None:
        coerce_fields(self)
        set_field = object.__setattr__
        check(1 <= self.dim <= LARGEST, "dim", f"1 to {LARGEST}", self.dim)
        if isinstance(self.condition, int):
            set_field(self, "condition", f"vector:{self.condition}")
        condition = str(self.condition)
        given = condition.startswith(("vector:", "image:", "tokens:")) and "+" not in condition
        given = given and not self.orders  # which are of tokens
        tokens = default_tokens(self.dim, given) if self.tokens is None else self.tokens
        divides = tokens >= 1 and self.dim % tokens == 0
        check(divides, "tokens", f"a divisor of the {self.dim} numbers, so that all tokens are alike", tokens)
        set_field(self, "tokens", tokens)
        if self.transform == "auto":
            set_field(self, "transform", "spline-by-number" if tokens < self.dim else "spline")
        check_supports(self.support, self.dim)
        set_field(self, "log_scale_bound", self.sequence.log_scale_bound)  # which checks all else

    @property
    def sequence(self) -> SequenceConfig:
        """The same as the architecture of a flow on sequences."""
        assert self.tokens is not None and isinstance(self.condition, str)
        return SequenceConfig(
            tokens=self.tokens,
            dim=self.dim // self.tokens,
            width=self.width,
            layers=self.layers,
            condition=self.condition,
            orders=self.orders,
            transforms=(self.transform,) * len(self.layers),
            log_scale_bound=self.log_scale_bound,
            bins=self.bins,
            interval=self.interval,
            start_token=self.start_token,
            head_dim=self.head_dim,
            expansion=self.expansion,
        )
