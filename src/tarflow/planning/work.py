"""How many numbers a flow has, and how many of them are multiplied: the one place where that is counted.

Counted are the products of matrices, a multiplication and an addition being two operations; norms, activations and the
transform are left out. With W the width, L the layers of a block, E the expansion of the MLP, D the numbers in a
patch, T the patches (one more with a start token), O the outputs, such as 2D (affine) or D (additive):

    one token            F = 2DW + 2WO + L·2W²(4 + 2E)           in, out, and per layer qkv 3W², out W², MLP 2EW²
    its attention        L·4W·(i+1)                              token i sees i+1 keys: q·k and the sum of values
    a block, one image   (T-1)·F + L·4W·T(T-1)/2                 the last patch is never fed: nothing comes after it
    its mixing           2TD²                                    of all patches, where a block mixes
    a prefix of P        L·(P·2W²(4 + 2E) + 4W·P(T-1+P))         all of it sees itself, and is seen by all patches
    backward             twice that, less 2DW a token            the first block's patches want no gradient

The half of attention that causality hides is not counted, though most kernels compute a part of it. What the backward
pass computes again is counted apart: it is work that the machine does, and none that training needs.
"""

from __future__ import annotations

from torch import nn

from tarflow.architecture import MIXED
from tarflow.config import Recompute, TarFlowConfig
from tarflow.model.aligned import AlignedEmbedding
from tarflow.model.condition import Condition, make_condition
from tarflow.model.flow import sequence_config
from tarflow.model.prefix import PrefixEmbedding
from tarflow.model.transform import Transform, make_transform
from tarflow.training.optimizer import ITERATIONS


def token_flops(config: TarFlowConfig, block: int) -> int:
    """F of the module's docstring: one token through one block, without its attention to others."""
    width, dim = config.width, config.patch_dim
    own = sum(parameter.numel() for parameter in _transform(config, block).parameters())  # matrices
    return 2 * (dim * width + width * outputs(config, block) + own) + config.layers[block] * _layer_flops(config)


def block_parameters(config: TarFlowConfig, block: int) -> int:
    """Numbers in the matrices, biases and norms of a block; positions and classes are read by the row and left out."""
    width, dim, transform = config.width, config.patch_dim, _transform(config, block)
    own = sum(parameter.numel() for parameter in transform.parameters()) + _is_mixed(config, block) * dim**2
    layers = config.layers[block] * layer_parameters(config)
    return dim * width + width + width * transform.size + transform.size + own + layers


def layer_parameters(config: TarFlowConfig) -> int:
    """Numbers in a Transformer layer: (4 + 2E)W² in matrices, (9 + E)W in biases and norms."""
    return (4 + 2 * config.expansion) * config.width**2 + (9 + config.expansion) * config.width


def inner_weights(config: TarFlowConfig) -> int:
    """Numbers in the matrices within the Transformer layers, those that Muon turns: (4 + 2E)W² a layer."""
    return sum(config.layers) * (4 + 2 * config.expansion) * config.width**2


def muon_flops(config: TarFlowConfig) -> int:
    """Products of one step of Muon: for a matrix n x m, n the shorter side, five times 4n²m + 2n³.

    A layer has one of 3W x W, one of W x W and two of EW x W, together 5·(24 + 8E)W³.
    """
    return sum(config.layers) * ITERATIONS * (24 + 8 * config.expansion) * config.width**3


def parameters(config: TarFlowConfig) -> int:
    """All numbers that training moves, positions and what embeds a condition among them.

    >>> parameters(TarFlowConfig(image_size=64, patch_size=2, width=768, layers=(8,) * 8, num_classes=1000))
    466286784
    """
    embedding = _condition(config).embedding(config.width, device="meta")
    told = 0 if embedding is None else sum(parameter.numel() for parameter in embedding.parameters())
    rows = (config.num_patches + config.start_token) * config.width + told
    return sum(block_parameters(config, block) + rows for block in range(len(config.layers)))


def forward_flops(config: TarFlowConfig, images: int = 1) -> int:
    """`encode` of so many images, each with a value of its condition."""
    count, prefix = fed_tokens(config), prefix_tokens(config)
    pairs = count * (count + 1) // 2 + prefix * (count + prefix)  # token i of the T-1 that are fed sees i+1 keys
    told, mixing = embedding_flops(config), config.num_patches * 2 * config.patch_dim**2
    return images * sum(
        told
        + count * token_flops(config, block)
        + layers * (prefix * _layer_flops(config) + 4 * config.width * pairs)
        + _is_mixed(config, block) * mixing
        for block, layers in enumerate(config.layers)
    )


def training_flops(config: TarFlowConfig, images: int) -> int:
    """Forward and backward of a step of so many images, with nothing computed twice."""
    read = fed_tokens(config) * (config.width + _transform(config, 0).reads)
    if _is_mixed(config, 0):
        read = config.num_patches * config.patch_dim
    unused = 2 * config.patch_dim * read  # the gradient of the images
    return 3 * forward_flops(config, images) - images * unused


def recomputed_flops(config: TarFlowConfig, images: int, recompute: Recompute) -> int:
    """What a step of so many images computes once more: of each layer all but its last product, or no product."""
    if recompute != "layers":
        return 0
    count, prefix = fed_tokens(config), prefix_tokens(config)
    last = 2 * config.expansion * config.width**2  # what comes out of it is not needed, and torch stops before it
    pairs = count * (count + 1) // 2 + prefix * (count + prefix)
    layer = (count + prefix) * (_layer_flops(config) - last) + 4 * config.width * pairs
    return images * sum(config.layers) * layer


def _layer_flops(config: TarFlowConfig) -> int:
    return 2 * config.width**2 * (4 + 2 * config.expansion)


def fed_tokens(config: TarFlowConfig) -> int:
    """Tokens of an image that go through a Transformer: all but the last, and the start token."""
    return config.num_patches - 1 + config.start_token


def prefix_tokens(config: TarFlowConfig) -> int:
    """Tokens of a condition that go through a Transformer before those of the image."""
    return _condition(config).places


def embedding_flops(config: TarFlowConfig) -> int:
    """What embeds a condition, in one block and for one image."""
    total, embedding = 0, _condition(config).embedding(config.width, device="meta")
    for module in () if embedding is None else embedding.modules():
        tokens = module.tokens if isinstance(module, PrefixEmbedding | AlignedEmbedding) else 1
        linears = (child for child in module.children() if isinstance(child, nn.Linear))
        total += sum(2 * tokens * linear.weight.numel() for linear in linears)
    return total


def _condition(config: TarFlowConfig) -> Condition:
    return make_condition(sequence_config(config).condition, device="meta")


def outputs(config: TarFlowConfig, block: int) -> int:
    """Numbers that a block predicts for a patch."""
    return _transform(config, block).size


def _is_mixed(config: TarFlowConfig, block: int) -> bool:
    return config.block_transforms[block].endswith(MIXED)


def _transform(config: TarFlowConfig, block: int) -> Transform:
    """That of a block, without memory."""
    return make_transform(config.block_transforms[block].removesuffix(MIXED), sequence_config(config), device="meta")
