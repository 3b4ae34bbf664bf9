"""What training keeps in the memory of each device, number by number: weights and their companions, and activations.

Of P weights float32 keeps 16P bytes: the weights, both moments of AdamW, the averaged weights (whatever their decay),
and 4P of gradients. What Muon turns has one moment, and 4 bytes less. Activations are what the forward pass keeps for
the backward pass: for each of the b(T-1) tokens of a micro-batch, of W numbers of 4 bytes in the residual stream and of
p bytes in products (4 in float32, 2 in bf16), with E the expansion of the MLP, H the heads and c = 1 where the CPU puts
attention together from pieces, else 0,

    nothing       2·4W + p(6 + 2E + c)W + 16 + 4H    a layer: its input and the sum after attention; norm, queries,
                                                     keys, values, attention, norm, the hidden layer before and after
                                                     its GELU; two norms' means and deviations, a softmax's normaliser
    elementwise   2·4W + p(4 + E + c)W + 16 + 4H     a layer, without the norms and what comes out of the GELU
    compiled      4W + p(5 + E)W + 16 + 4H           a layer, as "elementwise", but attention's output for the sum
    layers        4W                                 a layer: its input
    beside them   4W + (p + 8)D                      a block: what the last layer gives, the patches, the affine step

The backward pass takes an activation away and puts gradients in its place, so that with one micro-batch the most is the
larger of the two, and with several their sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tarflow.architecture import MIXED, transform_entry
from tarflow.config import Recompute, TarFlowConfig
from tarflow.model.transformer import CPU_QUERIES
from tarflow.planning.work import fed_tokens, inner_weights, layer_parameters, outputs, parameters, prefix_tokens
from tarflow.training.layers import LEAST_NUMBERS

Strategy = Literal["ddp", "fsdp"]
FLOAT = 4  # bytes of a float32


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        weights: the weights, and under bf16 the narrow copies that autocast makes of the matrices.
        gradients: of all weights, and DDP's buckets, which hold them a second time on their way.
        moments: both of AdamW. averaged: the averaged weights.
        activations: what the forward pass of a micro-batch keeps, at its end.
        working: what the backward pass of one layer takes for itself, and FSDP for the layers that are together.
        images: the training images, where they are kept on the device.
        micro_batches: in which a device does its share of a step.
    """

    weights: int
    gradients: int
    moments: int
    averaged: int
    activations: int
    working: int
    images: int
    micro_batches: int

    @property
    def peak(self) -> int:
        """The most at any one time."""
        lasting = self.weights + self.moments + self.averaged + self.images
        passing = [self.activations + self.working, self.gradients]
        return lasting + (max(passing) if self.micro_batches == 1 else sum(passing))


def training_memory(
    config: TarFlowConfig,
    *,
    images: int,
    micro_batches: int = 1,
    recompute: Recompute = "elementwise",
    bf16: bool = False,
    compiled: bool = False,
    on_cpu: bool = False,
    devices: int = 1,
    strategy: Strategy = "ddp",
    muon: bool = False,
    stored: int = 0,
) -> Memory:
    """The memory of each of `devices` that share a step.

    DDP keeps everything on every device, and gradients twice, as torch does it unless told otherwise. FSDP keeps a
    share of weights, gradients, moments and averaged weights, and puts one layer together while the next one arrives;
    autocast's narrow copies are kept whole until the forward pass is through.

    Args:
        images: of a micro-batch on one device. micro_batches: that a device takes in a step.
        compiled: by `training.layers`; then "nothing" and "elementwise" are the same.
        muon: the matrices within the layers have one moment, where AdamW has two.
        stored: bytes of training images that are kept on the device.
    """
    numbers = parameters(config)
    share = -(-numbers // devices) if strategy == "fsdp" else numbers
    tokens = images * (fed_tokens(config) + prefix_tokens(config))
    if recompute == "elementwise" and not compiled and tokens * config.width < LEAST_NUMBERS:
        recompute = "nothing"  # as the layer itself decides
    if compiled and recompute == "nothing":
        recompute = "elementwise"
    narrow = 2 if bf16 else FLOAT
    layer = layer_activations(config, recompute, narrow, on_cpu=on_cpu, compiled=compiled)
    block = FLOAT * config.width
    # x - shift, exp(-log_scale) and the log-scale before its bound, by which it goes, and what was mixed; a sum keeps
    # nothing
    names = config.block_transforms
    factors = sum(3 * transform_entry(name).scales + name.endswith(MIXED) for name in names)
    more = sum(max(0, outputs(config, b) - 2 * config.patch_dim) for b in range(len(config.layers)))  # of a spline
    affine = (len(config.layers) * narrow + factors * FLOAT) * config.patch_dim + more * FLOAT
    activations = tokens * (sum(config.layers) * layer + len(config.layers) * block + affine)
    activations += images * config.num_dims * FLOAT  # the latents
    working = tokens * _backward(config, recompute, narrow, on_cpu=on_cpu)
    if strategy == "fsdp" and devices > 1:
        working += 3 * FLOAT * layer_parameters(config)  # a layer, the one that arrives, and the gradients of one
    # Of what leads into a block and of the matrices within its layers; what leads out of it stays in float32.
    matrices = len(config.layers) * config.patch_dim * config.width + inner_weights(config)
    casts = 2 * matrices if bf16 else 0
    buckets = FLOAT * numbers if strategy == "ddp" and devices > 1 else 0
    return Memory(
        weights=FLOAT * share + casts,
        gradients=FLOAT * share + buckets,
        moments=FLOAT * (2 * share - (inner_weights(config) if muon else 0)),
        averaged=FLOAT * share,
        activations=activations,
        working=working,
        images=stored,
        micro_batches=micro_batches,
    )


def layer_activations(
    config: TarFlowConfig, recompute: Recompute, narrow: int, *, on_cpu: bool, compiled: bool = False
) -> int:
    """Bytes a token that a layer keeps, by the table in the module's docstring."""
    width, expansion = config.width, config.expansion
    if recompute == "layers":
        return FLOAT * width
    pieces = 1 if on_cpu and fed_tokens(config) > CPU_QUERIES else 0
    kept = 6 + 2 * expansion if recompute == "nothing" else 4 + expansion
    kept += 2 if config.rotary else 0  # queries and keys as they were turned; the others are views that the values keep
    small = FLOAT * (4 + width // config.head_dim)  # mean and deviation of two norms; a softmax's normaliser
    sums = 2 * FLOAT  # what comes in, and the sum after attention
    if compiled:  # which keeps what attention adds to the sum instead of the sum
        sums += narrow - FLOAT
    return (sums + narrow * (kept + pieces)) * width + small


def _backward(config: TarFlowConfig, recompute: Recompute, narrow: int, *, on_cpu: bool) -> int:
    """Bytes a token that the backward pass of the last layer takes: gradients, and what is computed again."""
    width, expansion = config.width, config.expansion
    gradients = (2 * FLOAT + expansion * narrow) * width  # of the output, of the sum, of the hidden layer
    if recompute == "elementwise":
        return gradients + expansion * narrow * width  # what comes out of the GELU, once more
    if recompute == "layers":
        return gradients + layer_activations(config, "nothing", narrow, on_cpu=on_cpu)
    return gradients
