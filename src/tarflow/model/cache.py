"""The key/value cache of one block: allocated once, written by position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer of a block, for sequences of at most `length` tokens.

    It belongs to whoever decodes and is passed to `Block.conditioner`; no module keeps it. Writing past positions again
    is allowed, which is how a parallel solver revises a window that has not converged yet.

    Args:
        layers, batch, heads, length, head_dim: the fixed shape; each layer holds (B, H, T, K) keys and as many values.
    """

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        head_dim: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # (layers, 2, B, H, T, K): one write puts away the key and the value of a token
        self.store = torch.zeros(layers, 2, batch, heads, length, head_dim, device=device, dtype=dtype)
        self.keys, self.values = self.store[:, 0], self.store[:, 1]

    @staticmethod
    def bytes_needed(layers: int, batch: int, width: int, length: int, dtype: torch.dtype) -> int:
        """Bytes of a cache for heads that make up `width` channels: 2·layers·B·T·W numbers."""
        return 2 * layers * batch * length * width * dtype.itemsize

    @property
    def length(self) -> int:
        return self.store.shape[4]

    def memory(self, layer: int, start: int) -> Memory:
        """The memory of one layer for tokens from `start` on."""
        return Memory(self.store[layer], start)


@dataclass(frozen=True)
class Memory:
    """Keys and values (2, B, H, T, K) of one layer, of which those before `start` are there."""

    store: Tensor
    start: int

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, n, K) of tokens start … start+n-1; views of all up to there come back."""
        end = self.start + keys.shape[2]
        self.store[0, :, :, self.start : end] = keys
        self.store[1, :, :, self.start : end] = values
        return self.store[0, :, :, :end], self.store[1, :, :, :end]
