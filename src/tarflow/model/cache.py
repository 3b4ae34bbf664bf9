"""The key/value cache of one block: allocated once, written by position."""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """Keys and values of every layer of a block, for sequences of at most `length` patches.

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
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # Zeros, not empty memory: captured steps attend to the whole length under a mask, and 0·NaN is NaN.
        self._hold(torch.zeros(layers, 2, batch, heads, length, head_dim, device=device, dtype=dtype))

    def _hold(self, store: Tensor) -> None:
        self.store = store  # (layers, 2, B, H, T, K): one write puts away the key and the value of a patch
        self.keys, self.values = store[:, 0], store[:, 1]

    @staticmethod
    def bytes_needed(layers: int, batch: int, width: int, length: int, dtype: torch.dtype) -> int:
        """Bytes of a cache for heads that make up `width` channels: 2·layers·B·T·W numbers."""
        return 2 * layers * batch * length * width * dtype.itemsize

    @property
    def length(self) -> int:
        return self.store.shape[4]

    def first(self, length: int) -> KVCache:
        """The first `length` positions as a cache of their own, in the same memory."""
        view = KVCache.__new__(KVCache)
        view._hold(self.store[:, :, :, :, :length])
        return view

    def write(self, layer: int, start: int | Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, H, n, K) of patches start … start+n-1, and return what these may look at.

        With an int `start` these are views of the first start+n positions. With a 0-d tensor, whose value the host does
        not know, it is the whole length, and the caller masks the tail.
        """
        count = keys.shape[2]
        if isinstance(start, Tensor):
            where = start + torch.arange(count, device=keys.device)
            self.keys[layer].index_copy_(2, where, keys.to(self.keys.dtype))
            self.values[layer].index_copy_(2, where, values.to(self.values.dtype))
            return self.keys[layer], self.values[layer]
        end = start + count
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]
