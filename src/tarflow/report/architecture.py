"""The architecture as SVG, drawn from the model: the stack of blocks, and the inside of one (figure 2 of the paper).

Everything comes from the modules of the flow, not from what the config promises: the number of blocks and of their
layers, the direction of each, whether there are classes and a log-scale. The lines are in `templates/architecture.svg`.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from tarflow.model.flow import TarFlow
from tarflow.report.parts import TEMPLATES
from tarflow.report.words import plural, short


def stack(name: str, flow: TarFlow) -> Markup:
    """The image cut into patches, every block with its direction, and the latent below. `name` prefixes the ids."""
    blocks = [
        {
            "layers": len(b.layers),
            "weights": short(sum(p.numel() for p in b.parameters())),
            "flipped": b.order.is_flipped,
        }
        for b in flow.blocks
    ]
    return _drawn("stack", name, flow.config, blocks, "V" if flow.base.follows else "I")


def block_inside(name: str, flow: TarFlow) -> Markup:
    """One block from its sequence to shift and log-scale. `name` prefixes the ids."""
    config, block = flow.config, flow.blocks[0]
    layers = sorted({len(b.layers) for b in flow.blocks})
    depth = "" if len(layers) == 1 else f"{layers[0]} to "
    affine = block.proj_out.out_features == 2 * config.patch_dim
    width, heads = config.width, plural(config.width // config.head_dim, "head")
    boxes = [  # (what it is, in detail, its style)
        ("patches before i, in the block's order", f"{config.patch_dim} numbers each", "latent"),
        (
            f"linear, {config.patch_dim} → {width}",
            "+ position" if block.embedding is None else "+ position + class",
            "part",
        ),
        (
            f"{depth}{plural(layers[-1], 'causal Transformer layer')}",
            f"width {width}, {heads} of {config.head_dim}, MLP {config.expansion * width}",
            "part",
        ),
        (f"linear, {width} → {block.proj_out.out_features}", "moved on by one patch", "part"),
        ("shift, log-scale" if affine else "shift (volume-preserving)", "of patch i", "latent"),
        (
            "z = (x − shift) · exp(−log-scale)" if affine else "z = x − shift",
            "of patch i; the first is left as it is",
            "block",
        ),
    ]
    return _drawn("inside", name, boxes)


def _drawn(macro: str, *values: Any) -> Markup:
    return Markup(getattr(TEMPLATES.get_template("architecture.svg").module, macro)(*values))


def parameters_of(flow: TarFlow) -> int:
    """How many numbers were learned."""
    return sum(parameter.numel() for parameter in flow.parameters())
