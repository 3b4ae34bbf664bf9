"""The keys and values of one block: a cache, allocated once and written by position, and what a layer sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer of a block, for sequences of at most `length` tokens.

    It belongs to whoever decodes and is passed to `Block.conditioner`; no module keeps it. Writing past positions again
    is allowed, which is how a parallel solver revises a window that has not converged yet.

    Args:
        layers, batch, heads, length, head_dim: the fixed shape; each layer holds (B, H, P+T, K) keys, and values.
        prefix: places P in front of the tokens, which `begin` fills.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        head_dim: int,
        *,
        prefix: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # (layers, 2, B, H, P+T, K): one write puts away the key and the value of a token
        self.prefix = prefix
        self.store = torch.zeros(layers, 2, batch, heads, prefix + length, head_dim, device=device, dtype=dtype)
        self.keys, self.values = self.store[:, 0], self.store[:, 1]

    @staticmethod
    def bytes_needed(layers: int, batch: int, width: int, length: int, dtype: torch.dtype) -> int:
        """Bytes of a cache for heads that make up `width` channels: 2·layers·B·T·W numbers."""
        return 2 * layers * batch * length * width * dtype.itemsize

    @property
    def length(self) -> int:
        return self.store.shape[4] - self.prefix

    def begin(self, prefix: Tensor | None) -> None:
        """Put the keys and values of a prefix (layers, 2, B or 1, H, P, K) in front, before the first token is fed."""
        if self.prefix:
            assert prefix is not None, "a cache with room for a prefix needs one"
            self.store[:, :, :, :, : self.prefix] = prefix

    def memory(self, layer: int, start: int) -> Cached:
        """The memory of one layer for tokens from `start` on: the one place where the prefix moves them."""
        return Cached(self.store[layer], self.prefix + start)


class Memory(Protocol):
    """What a layer sees besides the tokens that it is given, and keeps of them."""

    @property
    def causal(self) -> bool:
        """Whether a token sees none of those after it."""

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take keys and values (B, H, n, K) of the given tokens, the last ones of all those that come back."""


@dataclass(frozen=True)
class Cached:
    """Keys and values (2, B, H, P+T, K) of one layer, of which those before the place `start` are there."""

    store: Tensor
    start: int
    causal: ClassVar[bool] = True

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, n, K) from the place `start` on; views of all up to there come back."""
        end = self.start + keys.shape[2]
        self.store[0, :, :, self.start : end] = keys
        self.store[1, :, :, self.start : end] = values
        return self.store[0, :, :, :end], self.store[1, :, :, :end]


@dataclass(frozen=True)
class Behind:
    """Keys and values (2, B or 1, H, P, K) of a prefix, behind which the given tokens come: without a cache."""

    prefix: Tensor
    causal: ClassVar[bool] = True

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        before = self.prefix.expand(-1, keys.shape[0], -1, -1, -1)
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


class Prefill:
    """Keeps keys and values of a prefix, whose tokens see each other both ways: `kept`, (2, B, H, P, K)."""

    kept: Tensor
    causal = False

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.kept = torch.stack([keys, values])
        return keys, values
