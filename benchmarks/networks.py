"""Networks of ideas that have not been shown to help enough for the library: for training, scoring and slow decoding.

Normalised queries and keys, rotary positions without the learned ones, other orders of the patches, blocks that see
patches of another size or in other places, and a learned dequantisation.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tarflow.config import TarFlowConfig
from tarflow.model.block import Block
from tarflow.model.cache import Memory
from tarflow.model.condition import Condition, Value
from tarflow.model.config import SequenceConfig
from tarflow.model.events import Images, patchify, unpatchify
from tarflow.model.flow import TarFlow
from tarflow.model.rotary import Rotation, rotated
from tarflow.model.spline import Spline
from tarflow.model.transformer import Attention

ORDERS = ("raster", "flipped", "columns", "columns flipped")

DEQUANTISER = "dequantiser"
RESIZED = {  # which blocks see smaller patches (-1) or larger ones (1); in turn: every other pair, both directions
    "smaller patches first": ("first", -1),
    "smaller patches last": ("last", -1),
    "larger patches last": ("last", 1),
    "larger patches in turn": ("in turn", 1),
}

Parts = frozenset[str]


class Network(nn.Module):
    """A TarFlow with parts of `benchmarks.variants.Variant.parts`."""

    @staticmethod
    def build(config: TarFlowConfig, parts: Parts, levels: int = 256) -> TarFlow:
        """A flow of pixels with so many levels that has the parts; without parts it is a TarFlow and nothing else."""
        flow = TarFlow(config)
        if parts - {DEQUANTISER}:
            blocks = [_block(flow, index, parts) for index in range(len(config.layers))]
            flow.blocks = nn.ModuleList(blocks)  # type: ignore[assignment]
        if DEQUANTISER in parts:
            flow.event = Dequantised((config.channels, *config.image_shape), flow.sequence, config.patch_size, levels)
        return flow


def _block(flow: TarFlow, index: int, parts: Parts) -> Block:
    """The block of a flow with what of the parts is for it."""
    config, sequence = flow.config, flow.sequence
    place = Patches.of(config, index, parts)
    order = patch_order(
        place.grid,
        "raster" if "raster only" in parts else ORDERS[index % (4 if "four orders" in parts else 2)],
    )
    sequence = dataclasses.replace(
        sequence,
        tokens=len(order),
        dim=config.channels * place.size**2,
        lattice=place.grid,
        orders=(order,) * len(config.layers),
        rotary=config.rotary or "rotary alone" in parts,
    )
    if (place.size, place.shift) == (config.patch_size, 0):
        return TriedBlock(sequence, index, flow.conditions, parts)
    return RepackedBlock(sequence, index, flow.conditions, parts, place, config.patch_size)


class TriedBlock(Block):
    """A block with the parts that are tried."""

    def __init__(self, config: SequenceConfig, index: int, condition: Condition, parts: Parts) -> None:
        super().__init__(config, index, condition)
        if "rotary alone" in parts:
            self.position.requires_grad_(False).zero_()
        if "qk norm" in parts:
            for layer in self.layers:
                layer.attention = NormedAttention(config)


@dataclasses.dataclass(frozen=True)
class Patches:
    """How a block sees an image: in patches of `size`, after a shift of it by so many pixels, around its edges."""

    size: int
    shift: int
    image: tuple[int, int]

    @classmethod
    def of(cls, config: TarFlowConfig, index: int, parts: Parts) -> Patches:
        """Those of a block. Smaller and larger ones are of the next divisors of the image's height and width."""
        image, size = config.image_shape, config.patch_size
        sizes = [size for size in range(1, min(image) + 1) if image[0] % size == image[1] % size == 0]
        blocks = {"first": index == 0, "last": index == len(config.layers) - 1, "in turn": index // 2 % 2 == 1}
        steps = [step for part, (where, step) in RESIZED.items() if part in parts and blocks[where]]
        size = sizes[sizes.index(size) + sum(steps)]
        shift = size // 2 if "shifted patches in turn" in parts and blocks["in turn"] else 0
        return cls(size, shift, image)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image[0] // self.size, self.image[1] // self.size

    def cut(self, image: Tensor) -> Tensor:
        """Images (B, C, H, W) to the tokens of the block."""
        return patchify(image.roll((self.shift, self.shift), (2, 3)) if self.shift else image, self.size)

    def join(self, tokens: Tensor) -> Tensor:
        """The tokens of the block to images (B, C, H, W)."""
        image = unpatchify(tokens, self.size, self.image)
        return image.roll((-self.shift, -self.shift), (2, 3)) if self.shift else image


class RepackedBlock(TriedBlock):
    """A block that cuts images into patches of its own, between blocks that see those of the flow.

    Args:
        config: of its own tokens. patches: how it cuts. size: of the patches that are the tokens of the flow.
    """

    def __init__(
        self, config: SequenceConfig, index: int, condition: Condition, parts: Parts, patches: Patches, size: int
    ) -> None:
        super().__init__(config, index, condition, parts)
        self.patches, self.size = patches, size

    def encode(self, x: Tensor, y: Value = None) -> tuple[Tensor, Tensor]:
        """As any block; ladj is shared out evenly among the tokens of the flow, which are not its own."""
        z, ladj = super().encode(self.patches.cut(unpatchify(x, self.size, self.patches.image)), y)
        count = x.shape[1]
        return patchify(self.patches.join(z), self.size), ladj.sum(dim=1, keepdim=True).expand(-1, count) / count

    def decode(self, z: Tensor, y: Value = None) -> Tensor:
        x = super().decode(self.patches.cut(unpatchify(z, self.size, self.patches.image)), y)
        return patchify(self.patches.join(x), self.size)


class NormedAttention(Attention):
    """Attention of a whole sequence whose queries and keys have unit RMS a head, times a gain."""

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__(config.width, config.head_dim)
        self.gain = nn.Parameter(torch.ones(2, config.head_dim))

    def attend(
        self, qkv: Tensor, rotation: Rotation | None, memory: Memory | None, temperature: Tensor | None
    ) -> Tensor:
        assert memory is None and temperature is None, "for training and scoring only"
        batch, count, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        heads = (batch, count, width // self.head_dim, self.head_dim)
        q, k, v = (part.view(heads).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        q, k = (F.rms_norm(part, (self.head_dim,), gain) for part, gain in zip((q, k), self.gain, strict=True))
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x.transpose(1, 2).reshape(batch, count, width))


class Dequantised(Images):
    """Images whose noise within a level is not uniform but learned, given all levels k of the image.

        x = 2(k + u)/L - 1  →  2(k + f(u; k))/L - 1

    f is a rational-quadratic spline of each number, of [0, 1] onto itself, whose parameters a small network makes of
    the levels in a window around the patch: as the transform has it, of [-1, 1], and without its affine map. With u
    uniform, f(u; k) has the density q = 1/f'(u; k), and what the flow gives to x is log p(k + f(u; k)) + log f'(u; k):
    the variational bound E_q[log p - log q] on the log-probability of the levels, which is that of uniform
    dequantisation where f is the identity. So nothing else has to know of it, and what is scored compares. Source: Ho
    et al., Flow++, arXiv 1902.00275, section 3.1, whose q is a larger flow.
    """

    BINS, WIDTH, MARGIN = 4, 64, 2  # of the splines; channels of the network; pixels around a patch that it sees

    def __init__(self, shape: tuple[int, int, int], config: SequenceConfig, patch_size: int, levels: int) -> None:
        super().__init__(shape, patch_size)
        self.levels = levels
        self.spline = Spline(dataclasses.replace(config, bins=self.BINS, interval=1.0))
        self.hidden = nn.Linear(shape[0] * (patch_size + 2 * self.MARGIN) ** 2, self.WIDTH)
        self.out = nn.Linear(self.WIDTH, self.spline.size - 2 * config.dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def to_tokens(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | float]:
        assert mask is None, "images have no padding"
        k, params = self._level(x)
        v, ladj = self.spline(self.cut((x + 1) * self.levels - 2 * k - 1), params)  # of 2u - 1
        return (2 * self.cut(k) + v + 1) / self.levels - 1, ladj

    def from_tokens(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.join(tokens)
        k, params = self._level(x)
        v = self.spline.inverse(self.cut((x + 1) * self.levels - 2 * k - 1), params)
        return (2 * k + self.join(v) + 1) / self.levels - 1

    def _level(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """k (B, C, H, W), and the parameters of f for the numbers of all patches, (B, T, …), without an affine map."""
        k = ((x + 1) * (self.levels / 2)).floor().clamp(0, self.levels - 1)
        size = self.patch_size + 2 * self.MARGIN
        seen = F.unfold(2 * k / (self.levels - 1) - 1, size, padding=self.MARGIN, stride=self.patch_size).mT
        curve = self.out(F.gelu(self.hidden(seen.to(self.hidden.weight.dtype))))
        return k, F.pad(curve, (2 * self.spline.dim, 0))


def patch_order(grid: tuple[int, int], order: str) -> tuple[int, ...]:
    """Which patch, in raster order, comes at each place, T of them."""
    places = torch.arange(grid[0] * grid[1]).view(grid)
    places = places.t() if order.startswith("columns") else places
    return tuple((places.flatten().flip(0) if order.endswith("flipped") else places.flatten()).tolist())
