"""A stand-in for the file of that name in apple/ml-tarflow: its interface and mathematics, without cache or mask.

It is written from the formulas, to try the benchmarks where there is no clone. Nothing about its speed means anything.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HEAD = 64


class Attention(nn.Module):
    """Causal attention, its softmax written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, temperature: float) -> Tensor:
        heads = [part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, dim=-1)]
        q, k, v = heads
        logits = q @ k.transpose(-1, -2) / (math.sqrt(HEAD) * temperature)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.proj((logits.masked_fill(later, -math.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """A GELU between two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.main = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(self.norm(x))


class Layer(nn.Module):
    """Attention, then MLP, each added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width), MLP(width)

    def forward(self, x: Tensor, temperature: float) -> Tensor:
        x = x + self.attention(x, temperature)
        return x + self.mlp(x)


class MetaBlock(nn.Module):
    """One block, which walks its patches forwards or backwards."""

    def __init__(self, dim: int, width: int, patches: int, flipped: bool, layers: int, nvp: bool, classes: int) -> None:
        super().__init__()
        self.flipped, self.nvp = flipped, nvp
        self.proj_in = nn.Linear(dim, width)
        self.pos_embed = nn.Parameter(torch.zeros(patches, width))
        self.class_embed = nn.Parameter(torch.zeros(classes, 1, width)) if classes else None
        self.attn_blocks = nn.ModuleList(Layer(width) for _ in range(layers))
        self.proj_out = nn.Linear(width, 2 * dim if nvp else dim)
        self.register_buffer("attn_mask", torch.ones(patches, patches).tril())

    def order(self, x: Tensor, dim: int) -> Tensor:
        return x.flip(dim) if self.flipped else x

    def predict(self, x: Tensor, y: Tensor | None, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-scale and shift of the patch after each of the given ones, which are the first of the sequence."""
        h = self.proj_in(x) + self.order(self.pos_embed, 0)[: x.shape[1]]
        if self.class_embed is not None:
            null = self.class_embed.mean(dim=0)
            h = h + (null if y is None else torch.where((y < 0)[:, None, None], null, self.class_embed[y]))
        for layer in self.attn_blocks:
            h = layer(h, temperature)
        out = self.proj_out(h).float()
        if self.nvp:
            log_scale, shift = out.chunk(2, dim=-1)
            return log_scale, shift
        return torch.zeros_like(out), out

    def forward(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.order(x, 1)
        log_scale, shift = (nn.functional.pad(part, (0, 0, 1, 0)) for part in self.predict(x[:, :-1], y))
        return self.order((x - shift) * (-log_scale).exp(), 1), -log_scale.mean(dim=(1, 2))

    def guided(self, x: Tensor, y: Tensor | None, scale: float, temperature: float, total: int) -> list[Tensor]:
        branch = self.predict(x, y)
        if not scale:
            return list(branch)
        g = scale * torch.arange(1, x.shape[1] + 1).unsqueeze(1) / (total - 1)
        return [c + g * (c - u) for c, u in zip(branch, self.predict(x, None, temperature), strict=True)]

    def reverse(self, z: Tensor, y: Tensor | None, scale: float, temperature: float) -> Tensor:
        z = self.order(z, 1)
        x = z[:, :1]
        for i in range(1, z.shape[1]):
            log_scale, shift = self.guided(x, y, scale, temperature, z.shape[1])
            x = torch.cat([x, z[:, i : i + 1] * log_scale[:, -1:].exp() + shift[:, -1:]], dim=1)
        return self.order(x, 1)


class Model(nn.Module):
    """All blocks, with the constructor and the tensors of the official Model."""

    def __init__(
        self,
        in_channels: int,
        img_size: int,
        patch_size: int,
        channels: int,
        num_blocks: int,
        layers_per_block: int,
        nvp: bool = True,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        patches, dim = (img_size // patch_size) ** 2, in_channels * patch_size**2
        self.blocks = nn.ModuleList(
            MetaBlock(dim, channels, patches, b % 2 == 1, layers_per_block, nvp, num_classes) for b in range(num_blocks)
        )
        self.register_buffer("var", torch.ones(patches, dim))

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, list[Tensor], Tensor]:
        x = nn.functional.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        outputs, total = [], torch.zeros(len(x))
        for block in self.blocks:
            x, ladj = block(x, y)
            outputs.append(x)
            total = total + ladj
        return x, outputs, total

    def get_loss(self, z: Tensor, ladj: Tensor) -> Tensor:
        return z.square().mean() / 2 - ladj.mean()

    def images(self, x: Tensor) -> Tensor:
        size = (self.img_size, self.img_size)
        return nn.functional.fold(x.transpose(1, 2), size, self.patch_size, stride=self.patch_size)

    def reverse(
        self,
        x: Tensor,
        y: Tensor | None = None,
        guidance: float = 0,
        attn_temp: float = 1.0,
        annealed_guidance: bool = False,
    ) -> Tensor:
        assert annealed_guidance
        x = x * self.var.sqrt()
        for block in reversed(self.blocks):
            x = block.reverse(x, y, guidance, attn_temp)
        return self.images(x)
