"""One autoregressive step of the flow: conditioner, encode, reference decode."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from tarflow.config import Recompute, TarFlowConfig
from tarflow.devices import without_autocast
from tarflow.model.cache import KVCache
from tarflow.model.recompute import keeping_input
from tarflow.model.rotary import rotation_table
from tarflow.model.transform import TRANSFORMS
from tarflow.model.transformer import Layer

NULL_CLASS = -1
"""The label of no class: its embedding is the mean of all class embeddings."""


class Block(nn.Module):
    """A causal Transformer that predicts what its transform does to each patch from the patches before it.

        encode   z_i, ladj_i = transform.forward(x_i, params_i),   params_i = f(x_<i, y),   z_0 = x_0
        decode   x_i = transform.inverse(z_i, params_i)

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
        self.transform = TRANSFORMS[config.transform](config.bound)
        width, outputs = config.width, config.patch_dim * self.transform.params_per_number
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
        """The dtype of z, of the parameters, and of all else that is not rounded: float32 at least."""
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
    ) -> Tensor:
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
            params (B, n, k·D) of `self.transform`, float32 at least.
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
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def encode(self, x: Tensor, y: Tensor | None = None, recompute: Recompute = "nothing") -> tuple[Tensor, Tensor]:
        """x (B, T, D) and labels (B,) to z (B, T, D) and ladj by patch (B, T), nats; all in raster order."""
        x = self.reorder(x)
        params = self.conditioner(x[:, :-1], self.context(y), recompute=recompute)  # of patches 1 … T-1
        z, ladj = self.transform.forward(x[:, 1:], params)
        return self.reorder(torch.cat([x[:, :1], z], dim=1)), self.reorder(nn.functional.pad(ladj, (1, 0)))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """z (B, T, D) to x (B, T, D): the inverse of `encode`, one patch after the other, without a cache.

        This is the reference that reads like the mathematics, at T times the cost of `encode`;
        `tarflow.sampling` holds the fast ones.
        """
        z = self.reorder(z)
        context = self.context(y)
        x = z[:, :1]
        for i in range(1, z.shape[1]):
            params = self.conditioner(x, context)[:, -1:]
            x = torch.cat([x, self.transform.inverse(z[:, i : i + 1], params)], dim=1)
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
