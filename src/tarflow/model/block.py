"""One autoregressive affine step of the flow: conditioner, encode, reference decode."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from tarflow.config import Recompute, TarFlowConfig
from tarflow.devices import without_autocast
from tarflow.model.cache import KVCache
from tarflow.model.recompute import keeping_input
from tarflow.model.rotary import rotation_table
from tarflow.model.transformer import Layer

NULL_CLASS = -1
"""The label of no class: its embedding is the mean of all class embeddings."""


SHARE_OF_RANGE = 0.9
"""Of the exponents that a dtype has: an unbounded log-scale ends at ±80 in float32, beyond which e^±v is no number."""


class Block(nn.Module):
    """A causal Transformer that predicts the shift and log-scale of each patch from the patches before it.

        encode   z_i = (x_i - shift_i)·exp(-log_scale_i),   shift_i, log_scale_i = f(x_<i, y),   z_0 = x_0
        decode   x_i = z_i·exp(log_scale_i) + shift_i
        ladj     = -Σ_i Σ_d log_scale_id

    Sequences come and go in raster order; inside, a block with `flipped=True` walks them from the last patch to the
    first. Source: TarFlow, arXiv 2412.06329, section 3.
    """

    def __init__(
        self,
        config: TarFlowConfig,
        layers: int,
        flipped: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.flipped = flipped
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        width, outputs = config.width, config.patch_dim * (2 if config.transform == "affine" else 1)
        self.proj_in = nn.Linear(config.patch_dim, width, **made)
        self.position = nn.Parameter(_small(config.num_patches, width, **made))  # in raster order
        self.class_embedding: nn.Parameter | None = None
        if config.num_classes:
            self.class_embedding = nn.Parameter(_small(config.num_classes, width, **made))
        self.layers = nn.ModuleList(Layer(width, config.head_dim, config.expansion, **made) for _ in range(layers))
        self.proj_out = nn.Linear(width, outputs, **made)
        nn.init.zeros_(self.proj_out.weight)  # every block starts as a constant map

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, by the positions: a layer may have been replaced by one without a weight."""
        return self.position.dtype

    @property
    def product_dtype(self) -> torch.dtype:
        """The dtype of the matrices within the layers, and of queries, keys and values: `sampling.narrow` lowers it."""
        weight = getattr(cast("Layer", self.layers[0]).attention.qkv, "weight", None)
        return weight.dtype if isinstance(weight, Tensor) else self.dtype  # a layer that was replaced may have none

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of z, the shift and the log-scale, and of all else that is not rounded: float32 at least."""
        return torch.promote_types(self.dtype, torch.float32)

    def reorder(self, x: Tensor) -> Tensor:
        """Raster order to the block's own order, or back: the flip is its own inverse. Shape (B, T, …)."""
        return x.flip(1) if self.flipped else x

    def context(self, y: Tensor | None = None) -> Tensor | None:
        """What is added to every token: (B, 1, W) for labels (B,), (1, 1, W) for None, and None without classes."""
        if self.class_embedding is None:
            return None
        null = self.class_embedding.mean(dim=0, keepdim=True)
        if y is None:
            return null.unsqueeze(0)
        table = torch.cat([self.class_embedding, null])
        return table[torch.where(y == NULL_CLASS, self.config.num_classes, y)].unsqueeze(1)

    def new_cache(self, batch: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> KVCache:
        """A cache for decoding `batch` sequences with this block."""
        config = self.config
        heads, length = config.width // config.head_dim, max(1, config.num_patches - 1)  # the last patch is never read
        device = device or self.position.device
        return KVCache(
            len(self.layers), batch, heads, length, config.head_dim, device=device, dtype=dtype or self.product_dtype
        )

    def conditioner(
        self,
        x: Tensor,
        context: Tensor | None,
        start: int = 0,
        cache: KVCache | None = None,
        temperature: Tensor | None = None,
        recompute: Recompute = "nothing",
    ) -> tuple[Tensor, Tensor]:
        """Predict patches start+1 … start+n from patches start … start+n-1 and what the cache holds before them.

        Args:
            x: (B, n, D), patches in the block's own order.
            context: what `context(y)` returned.
            start: position of the first of them.
            cache: keys and values of patches before `start`; those of the given patches are written to it. Needed
                where start > 0.
            temperature: (B,), attention logits are divided by it; None divides by nothing.
            recompute: what a backward pass computes again instead of keeping it; changes no value.

        Returns:
            shift, log_scale: (B, n, D) each, float32 at least. The log-scale is raw: `bound` comes after guidance.
        """
        assert cache is not None or start == 0, "start > 0 needs the cache of what is before"
        h = self.proj_in(x.to(self.dtype)) + self._positions(start, x.shape[1])  # (B, n, W)
        if context is not None:
            h = h + context
        rotation = self._rotation(start, x.shape[1])
        for index, layer in enumerate(self.layers):
            options = {
                "start": start,
                "layer": index,
                "cache": cache,
                "temperature": temperature,
                "rotation": rotation,
            }
            h = (
                keeping_input(layer, h, **options)
                if recompute == "layers"
                else layer(h, **options, recompute=recompute)
            )
        with without_autocast(h.device):  # which would double its error in the density, for no time
            out = self.proj_out(h.to(self.dtype))
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        if self.config.transform == "additive":
            return out, out.new_zeros(()).expand_as(out)
        # The order of the official checkpoints: log-scale first.
        log_scale, shift = out.chunk(2, dim=-1)
        return shift, log_scale

    def bound(self, log_scale: Tensor) -> Tensor:
        """The log-scale that is used: a·tanh(v/a) where the config bounds it, v itself where not."""
        a = self.config.bound
        return log_scale if a is None else a * torch.tanh(log_scale / a)

    def encode(self, x: Tensor, y: Tensor | None = None, recompute: Recompute = "nothing") -> tuple[Tensor, Tensor]:
        """x (B, T, D) in raster order and labels (B,) to z (B, T, D) and ladj (B,), nats."""
        z, log_scale = self._affine(x, y, recompute)
        return z, -log_scale.sum(dim=(1, 2))

    def encode_patches(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `encode`, with ladj patch by patch: z (B, T, D) and -Σ_d log_scale_id (B, T), both in raster order."""
        z, log_scale = self._affine(x, y)
        patch_ladj = nn.functional.pad(-log_scale.sum(dim=2), (1, 0))  # z_0 = x_0: nothing is scaled
        return z, self.reorder(patch_ladj)

    def _affine(self, x: Tensor, y: Tensor | None, recompute: Recompute = "nothing") -> tuple[Tensor, Tensor]:
        """z (B, T, D) in raster order, and the log-scale (B, T-1, D) of patches 1 … T-1 of the block's own order."""
        x = self.reorder(x)
        shift, log_scale = self.conditioner(x[:, :-1], self.context(y), recompute=recompute)  # of patches 1 … T-1
        log_scale = self.bound(log_scale)
        if self.config.transform == "affine":
            largest = SHARE_OF_RANGE * math.log(torch.finfo(log_scale.dtype).max)
            if self.config.bound is None or self.config.bound > largest:
                log_scale = log_scale.clamp(-largest, largest)
        z = torch.cat([x[:, :1], (x[:, 1:] - shift) * torch.exp(-log_scale)], dim=1)
        return self.reorder(z), log_scale

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, T, D) to x (B, T, D): the inverse of `encode`, one patch after the other, without a cache.

        This is the reference that reads like the mathematics, at T times the cost of `encode`;
        `tarflow.sampling` holds the fast ones.
        """
        z = self.reorder(z)
        context = self.context(y)
        x = z[:, :1]
        for i in range(1, z.shape[1]):
            shift, log_scale = self.conditioner(x, context)
            x_i = z[:, i] * torch.exp(self.bound(log_scale[:, -1])) + shift[:, -1]
            x = torch.cat([x, x_i.unsqueeze(1)], dim=1)
        return self.reorder(x)

    def _positions(self, start: int, count: int) -> Tensor:
        """The position embeddings (n, W) of patches start … start+n-1 of the block's own order."""
        if self.flipped:
            end = len(self.position) - start
            return self.position[end - count : end].flip(0)
        return self.position[start : start + count]

    def rotation(self) -> tuple[Tensor, Tensor] | None:
        """cos and sin (T, K/2) of the angles of all patches, in the block's own order; None without rotary positions.

        float32 at least: under autocast they are not rounded to what the products are.
        """
        config = self.config
        if not config.rotary:
            return None
        return rotation_table(config.grid, config.head_dim, self.flipped, self.position.device, self.state_dtype)

    def _rotation(self, start: int, count: int) -> tuple[Tensor, Tensor] | None:
        """The same of patches start … start+n-1, (n, K/2)."""
        table = self.rotation()
        if table is None:
            return None
        return table[0][start : start + count], table[1][start : start + count]


def _small(rows: int, width: int, **made: Any) -> Tensor:
    """N(0, 0.01²), (rows, W). On the meta device without the product, for which PyTorch would import its compiler."""
    table = torch.randn(rows, width, **made)
    return table if table.is_meta else table * 1e-2
