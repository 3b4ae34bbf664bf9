"""The order in which a block walks the tokens of a sequence.

A new order is a function from the number of tokens (and what its name says after a colon) to a permutation, and one
line in `ORDERS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tarflow.fields import ConfigError
from tarflow.model.constants import constants


class Order:
    """Place i of a block's own order holds token `permutation[i]` of the sequence.

    Args:
        permutation: each of 0 … T-1 once.

    >>> order = Order([2, 0, 1])
    >>> x = torch.tensor([[10, 11, 12]])
    >>> order.forward(x), order.inverse(order.forward(x))
    (tensor([[12, 10, 11]]), tensor([[10, 11, 12]]))
    """

    def __init__(self, permutation: Sequence[int]) -> None:
        self.permutation = tuple(permutation)
        count = len(self.permutation)
        assert sorted(self.permutation) == list(range(count)), self.permutation
        self.key = hashlib.blake2b(repr(self.permutation).encode(), digest_size=16).hexdigest()
        self.is_raster = self.permutation == tuple(range(count))
        self.is_flipped = self.permutation == tuple(reversed(range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, …) from the order of the sequence into the block's own."""
        if self.is_raster:
            return x
        return x.flip(1) if self.is_flipped else x[:, self._indices(x.device)[0]]

    def inverse(self, x: Tensor) -> Tensor:
        """x (B, T, …) from the block's own order into that of the sequence."""
        if self.is_raster:
            return x
        return x.flip(1) if self.is_flipped else x[:, self._indices(x.device)[1]]

    def rows(self, table: Tensor, start: int, count: int) -> Tensor:
        """What a table (T, …), in the order of the sequence, has for places start … start+count-1: (count, …)."""
        if self.is_raster:
            return table[start : start + count]
        if self.is_flipped:
            end = len(table) - start
            return table[end - count : end].flip(0)
        return table[self._indices(table.device)[0][start : start + count]]

    def _indices(self, device: torch.device) -> tuple[Tensor, ...]:
        """The permutation and its inverse, (T,) each."""

        def make() -> tuple[Tensor, ...]:
            permutation = torch.tensor(self.permutation, dtype=torch.int64, device=device)
            return permutation, permutation.argsort()

        return constants(("order", self.key, device), make)


class Padded(Order):
    """In each row its own tokens first, in the order of another, and its padding behind them, which none of them sees.

    So a causal network, and whatever solves it token by token, knows of no padding: what it makes of that is last, and
    is zero when it leaves.

    Args:
        order: that of the block. mask: (B, T) bool, in the order of the sequence: which tokens are there.

    >>> order = Padded(Order([2, 1, 0]), torch.tensor([[True, False, True]]))
    >>> x = torch.tensor([[10, 11, 12]])
    >>> order.forward(x), order.inverse(order.forward(x))
    (tensor([[12, 10, 11]]), tensor([[10,  0, 12]]))
    """

    def __init__(self, order: Order, mask: Tensor) -> None:
        super().__init__(order.permutation)
        self.inner, self.mask = order, mask
        there = order.forward(mask).to(torch.uint8)
        places = there.argsort(dim=1, descending=True, stable=True)  # (B, T), of the other order
        tokens = torch.arange(mask.shape[1], dtype=torch.int64, device=mask.device).expand(mask.shape)
        self.tokens = order.forward(tokens).gather(1, places)
        self.counts = mask.sum(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.take_along_dim(x, self._along(self.tokens, x), dim=1)

    def inverse(self, x: Tensor) -> Tensor:
        x = torch.take_along_dim(x, self._along(self.tokens.argsort(dim=1), x), dim=1)
        return torch.where(self._along(self.mask, x), x, 0)

    def rows(self, table: Tensor, start: int, count: int) -> Tensor:
        """What a table (T, …) has for places start … start+count-1 of each row: (B, count, …)."""
        return table[self.tokens[:, start : start + count]]

    @staticmethod
    def _along(values: Tensor, x: Tensor) -> Tensor:
        return values.view(*values.shape, *(1,) * (x.ndim - 2))


def _random(count: int, seed: str) -> Sequence[int]:
    """A permutation by the digests of (seed, token): the same in every version of Python and of torch."""
    return sorted(range(count), key=lambda token: hashlib.blake2b(f"{int(seed)} {token}".encode()).digest())


ORDERS: dict[str, Callable[..., Sequence[int]]] = {  # of the number of tokens, and of what is behind colons
    "raster": lambda count: range(count),
    "flipped": lambda count: range(count - 1, -1, -1),
    "random": _random,  # random:SEED
}


def make_order(order: str | tuple[int, ...], count: int) -> Order:
    """The order of `count` tokens that a config names, or has the permutation of; ConfigError where there is none."""
    if isinstance(order, str):
        name, *arguments = order.split(":")
        try:
            return Order(ORDERS[name](count, *arguments))
        except (KeyError, TypeError, ValueError):
            expected = f"one of {', '.join(ORDERS)} (random:SEED), or a permutation"
            raise ConfigError(f"orders: expected {expected}, got {order!r}") from None
    if sorted(order) != list(range(count)):
        raise ConfigError(f"orders: expected a permutation of 0 to {count - 1}, got {list(order)}")
    return Order(order)
