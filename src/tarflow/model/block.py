"""One autoregressive step of the flow: conditioner, encode, reference decode."""

from __future__ import annotations

import copy
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.architecture import MIXED
from tarflow.devices import without_autocast
from tarflow.model.cache import Behind, KVCache, Memory, Prefill
from tarflow.model.condition import Condition, Value, small_normal
from tarflow.model.config import SequenceConfig
from tarflow.model.context import Context
from tarflow.model.mixing import Mixing
from tarflow.model.order import Padded, make_order
from tarflow.model.rotary import Rotation, rotation_table
from tarflow.model.transform import make_transform
from tarflow.model.transformer import Layer


class Block(nn.Module):
    """A causal Transformer that predicts what its transform does to each token from the tokens before it.

        encode   z_i, ladj_i = transform.forward(x_i, params_i),   params_i = f(x_<i, y),   z_0 = x_0
        decode   x_i = transform.inverse(z_i, params_i)

    Sequences come and go in their own order; inside, tokens are in that of the block (`order`). A start token is a slot
    of zeros in front of them, with a learned position: everything inside knows it as the token that is never
    transformed, and so the first token of the sequence is. Source: TarFlow, arXiv 2412.06329, section 3.

    Where there is a `mixing`, x stands for mixed tokens in all of this: they are mixed before, and unmixed after it.

    Args:
        config, index: of the flow, and which of its blocks this is. condition: that of the flow.
    """

    conditions: Condition

    def __init__(self, config: SequenceConfig, index: int, condition: Condition, **made: Any) -> None:
        super().__init__()
        self.config = config
        self.order = make_order(config.orders[index], config.tokens)
        name = config.transforms[index]
        self.transform = make_transform(name.removesuffix(MIXED), config, **made)
        self.mixing = Mixing(config.dim, **made) if name.endswith(MIXED) else None
        width = config.width
        self.proj_in = nn.Linear(config.dim, width, **made)
        self.position = nn.Parameter(small_normal(config.tokens, width, **made))  # in the order of the sequence
        self.start = nn.Parameter(small_normal(1, width, **made)) if config.start_token else None
        self.__dict__["conditions"] = condition  # the flow's, whose buffers all blocks share; no module of a block
        self.embedding = condition.embedding(width, **made)
        layers = (Layer(width, config.head_dim, config.expansion, **made) for _ in range(config.layers[index]))
        self.layers = cast("list[Layer]", nn.ModuleList(layers))  # which has no type for its elements
        self.proj_out = nn.Linear(width, self.transform.size, **made)
        nn.init.zeros_(self.proj_out.weight)  # every block starts as a constant map

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, by the positions: a layer may have been replaced by one without a weight."""
        return self.position.dtype

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype of the matrices within the layers, and of queries, keys and values: `sampling.narrow` lowers it."""
        weight = getattr(self.layers[0].attention.qkv, "weight", None)
        return weight.dtype if isinstance(weight, Tensor) else self.dtype  # a layer that was replaced may have none

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of z, of the parameters, and of all else that is not rounded: float32 at least."""
        return torch.promote_types(self.dtype, torch.float32)

    def context(self, y: Value = None) -> Context | None:
        """What the conditioner takes of checked values y, of one row for None; None without condition."""
        if self.embedding is None:
            return None
        told = self.embedding(self.conditions.standardised(y))
        added, prefix = told.added, told.prefix
        if prefix is not None:
            prefix = self._prefilled(prefix if added is None else prefix + added)
        if told.aligned is not None:
            by_slot = self._by_slot(told.aligned)
            added = by_slot if added is None else by_slot + added
        return Context(added, prefix)

    def _by_slot(self, aligned: Tensor) -> Tensor:
        """What values of the tokens add (B, T, 2, W) as what is added to each slot, (B, S, W) in the block's own order:
        that of the token in the slot, and that of the next one, which is predicted there."""
        own, following = self.order.forward(aligned).unbind(dim=2)
        if self.start is None:
            return own + F.pad(following[:, 1:], (0, 0, 0, 1))
        return F.pad(own, (0, 0, 1, 0)) + F.pad(following, (0, 0, 0, 1))

    def _prefilled(self, h: Tensor) -> Tensor:
        """A prefix (B, P, W) to its keys and values in all layers, (layers, 2, B, H, P, K)."""
        kept = []
        for layer in self.layers:
            memory = Prefill()
            h = layer(h, None, memory, None)
            kept.append(memory.kept)
        return torch.stack(kept)

    def new_cache(self, batch: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> KVCache:
        """A cache for decoding `batch` sequences with this block."""
        config = self.config
        heads, length = config.width // config.head_dim, max(1, config.slots - 1)  # the last token is never read
        made: dict[str, Any] = {"device": device or self.position.device, "dtype": dtype or self.product_dtype}
        prefix = self.conditions.places
        return KVCache(len(self.layers), batch, heads, length, config.head_dim, prefix=prefix, **made)

    def conditioner(
        self,
        x: Tensor,
        context: Context | None,
        start: int = 0,
        cache: KVCache | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        """Predict tokens start+1 … start+n from tokens start … start+n-1 and what the cache holds before them.

        Args:
            x: (B, n, D), tokens in the block's own order.
            context: what `context(y)` returned.
            start: position of the first of them.
            cache: keys and values of tokens before `start`; those of the given tokens are written to it, and where
                start = 0 those of the prefix. Needed where start > 0.
            temperature: (B,), attention logits are divided by it, not those within a prefix; None divides by nothing.

        Returns:
            params (B, n, k·D) of `self.transform`, float32 at least.
        """
        assert cache is not None or start == 0, "start > 0 needs the cache of what is before"
        h = self.proj_in(x.to(self.dtype)) + self.places(start, x.shape[1])  # (B, n, W)
        added = None if context is None else context.added_to(start, x.shape[1])
        if added is not None:
            h = h + added
        prefix = None if context is None else context.prefix
        if cache is not None and start == 0:
            cache.begin(prefix)
        rotation = self.rotation()
        if rotation is not None:
            cos, sin = (table[..., start : start + x.shape[1], :] for table in rotation)
            rotation = cos, sin
        for index, layer in enumerate(self.layers):
            memory: Memory | None = None if prefix is None else Behind(prefix[index])
            h = layer(h, rotation, memory if cache is None else cache.memory(index, start), temperature)
        with without_autocast(h.device):  # which would double its error in the density, for no time
            out = self.proj_out(h.to(self.dtype))
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def encode(self, x: Tensor, y: Value = None) -> tuple[Tensor, Tensor]:
        """x (B, T, D) and checked y to z (B, T, D) and ladj by token (B, T), nats; in the order of the sequence."""
        x = self.enter(self.mixed(x))
        z, ladj = self.transform(x[:, 1:], self.conditioner(x[:, :-1], self.context(y)))
        z, ladj = torch.cat([x[:, :1], z], dim=1), F.pad(ladj, (1, 0))
        return self.leave(z), self.leave(ladj)

    def decode(self, z: Tensor, y: Value = None) -> Tensor:
        """z (B, T, D) to x (B, T, D): the inverse of `encode`, one token after the other, without a cache.

        This is the reference that reads like the mathematics, at T times the cost of `encode`;
        `tarflow.sampling` holds the fast ones.
        """
        z = self.enter(z)
        context = self.context(y)
        x = z[:, :1]
        for i in range(1, z.shape[1]):
            params = self.conditioner(x, context)[:, -1:]
            x = torch.cat([x, self.transform.inverse(z[:, i : i + 1], params)], dim=1)
        return self.unmixed(self.leave(x))

    def padded(self, mask: Tensor | None) -> Self:
        """This block, its weights and all, for rows of which only some tokens are there: mask (B, T) bool; None is all.

        It works on as many rows, of which each walks its own tokens first (`Padded`), and leaves zeros elsewhere.
        """
        if mask is None:
            return self
        block = copy.copy(self)  # a module of the same parameters
        block.order = Padded(self.order.inner if isinstance(self.order, Padded) else self.order, mask)
        return block

    def repeated(self, times: int) -> Self:
        """This block for so many times as many rows; it matters where they are padded."""
        if not isinstance(self.order, Padded):
            return self
        return self.padded(self.order.mask.repeat(times, 1))

    def enter(self, x: Tensor) -> Tensor:
        """x (B, T, D) in the order of the sequence to (B, S, D) in the block's own, the start token in front."""
        x = self.order.forward(x)
        return x if self.start is None else F.pad(x, (0, 0, 1, 0))

    def leave(self, x: Tensor) -> Tensor:
        """(B, S, …) in the block's own order to (B, T, …) in that of the sequence: the inverse of `enter`."""
        return self.order.inverse(x if self.start is None else x[:, 1:])

    def mixed(self, x: Tensor) -> Tensor:
        """The first step of encoding: what the transforms get of tokens x (B, n, D)."""
        return x if self.mixing is None else self.mixing(x)

    def unmixed(self, x: Tensor) -> Tensor:
        """The last step of decoding, in the order of the sequence: x (B, T, D) from what the transforms gave."""
        return x if self.mixing is None else self.mixing.inverse(x)

    def places(self, start: int = 0, count: int | None = None) -> Tensor:
        """The learned positions of slots start … start+count-1, (count, W), in the block's own order; of all slots.

        (B, count, W) where each row has an order of its own.
        """
        count = self.config.slots - start if count is None else count
        if self.start is None:
            return self.order.rows(self.position, start, count)
        if start > 0:
            return self.order.rows(self.position, start - 1, count)
        places = self.order.rows(self.position, 0, count - 1)
        return torch.cat([self.start.expand(*places.shape[:-2], -1, -1), places], dim=-2)

    def rotation(self) -> Rotation | None:
        """cos and sin (S, K/2) of the angles of all slots, in the block's own order; None without rotary positions.

        The start token lies nowhere, and is not turned. Neither is a prefix, which is no part of the lattice. They are
        (B, 1, S, K/2) where each row has an order of its own.

        float32 at least: under autocast they are not rounded to what the products are.
        """
        config = self.config
        if not config.rotary:
            return None
        padded = self.order if isinstance(self.order, Padded) else None
        order = make_order("raster", config.tokens) if padded else self.order
        table = rotation_table(config.lattice, config.head_dim, order, self.position.device, self.state_dtype)
        if padded:
            cos, sin = (padded.rows(each, 0, config.tokens).unsqueeze(1) for each in table)
            table = cos, sin
        return table if self.start is None else (F.pad(table[0], (0, 0, 1, 0), value=1), F.pad(table[1], (0, 0, 1, 0)))
