"""TarFlow: the flow on images, of which each patch is a token."""

from __future__ import annotations

from typing import Any, ClassVar

from tarflow.config import TarFlowConfig
from tarflow.model.config import SequenceConfig
from tarflow.model.events import Images
from tarflow.model.sequence import SequenceFlow


class TarFlow(SequenceFlow):
    """A normalizing flow on images x (B, C, H, W) with an exact density, TarFlow, arXiv 2412.06329.

        log p(x|y) = log N(z; 0, V) + Σ_blocks ladj,    z, ladj = encode(x, y)

    A `SequenceFlow` on T patches of D numbers, whose blocks walk them forwards and backwards in turn (or all forwards,
    with `order="causal"`), with V = 1 for the affine transform and V = `base.variance` (T, D) for the additive one.
    Labels `y` are (B,) integers; `None`, or `NULL_CLASS` (-1) in a row, means the null class.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(image_size=8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> x = torch.zeros(5, 1, 8, 8)
    >>> flow.log_prob(x).shape
    torch.Size([5])
    >>> z, ladj = flow.encode(x)
    >>> flow.decode(z).shape
    torch.Size([5, 1, 8, 8])
    """

    config: TarFlowConfig
    config_type: ClassVar[type] = TarFlowConfig
    kind: ClassVar[str] = "images"

    @staticmethod
    def _adapted(config: TarFlowConfig, **made: Any) -> tuple[SequenceConfig, Images]:
        return sequence_config(config), Images((config.channels, *config.image_shape), config.patch_size)


def sequence_config(config: TarFlowConfig) -> SequenceConfig:
    """The architecture of a flow on images as that of a flow on sequences."""
    return SequenceConfig(
        tokens=config.num_patches,
        dim=config.patch_dim,
        width=config.width,
        layers=config.layers,
        orders=("raster",) * len(config.layers) if config.order == "causal" else (),  # forwards and backwards in turn
        condition=config.conditioned_on,
        transforms=config.block_transforms,
        bins=config.bins,
        interval=config.interval,
        start_token=config.start_token,
        log_scale_bound=config.bound,
        rotary=config.rotary,
        lattice=config.grid,
        standardise=False,
        head_dim=config.head_dim,
        expansion=config.expansion,
    )
