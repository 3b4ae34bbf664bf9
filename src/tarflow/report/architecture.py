"""The architecture as SVG, drawn from the model: the stack of blocks, and the inside of one (figure 2 of the paper).

Everything comes from the modules of the flow, not from what the config promises: the number of blocks and of their
layers, the direction of each, whether there are classes and a log-scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tarflow.model.block import Block
from tarflow.model.flow import TarFlow
from tarflow.report.markup import Markup, element

WIDTH = 440  # units; a phone shows them on some 360 pixels
LEFT, BOX = 20, 400  # of every box
STEP = 66  # from one block to the next
TOKENS = 8  # little squares that stand for a sequence, however long


def stack(name: str, flow: TarFlow) -> Markup:
    """The image cut into patches, every block with its direction, and the latent below. `name` prefixes the ids."""
    config = flow.config
    height, width = config.image_shape
    rows, columns = config.grid
    parts = _grid_of_patches(rows, columns)
    side = config.patch_size
    y = 112.0
    parts += [
        _text(150, 40, f"image x, {config.channels}×{height}×{width}", "strong"),
        _text(150, 62, f"{config.num_patches} patches of {side}×{side} pixels,"),
        _text(150, 82, f"{config.patch_dim} numbers each"),
    ]
    for index, block in enumerate(flow.blocks):
        parts.append(_arrow(WIDTH / 2, y - 14, y))
        parts += _block_box(block, index, y)
        y += STEP
    parts.append(_arrow(WIDTH / 2, y - 14, y))
    variance = "V" if flow.base.follows else "I"
    parts.append(_box(y, 40, "latent"))
    parts.append(
        _text(WIDTH / 2, y + 25, f"z ~ N(0, {variance}), {config.num_patches}×{config.patch_dim}", "strong", "middle")
    )
    forward = sum(block.order.is_raster for block in flow.blocks)
    described = (
        f"{height}×{width} images are cut into {rows} rows of {columns} patches and go "
        f"through {len(flow.blocks)} blocks, {forward} from the first patch to the last and "
        f"{len(flow.blocks) - forward} from the last to the first, into standard normal noise."
    )
    return _drawing(name, "The stack of blocks, from image to noise", described, parts, y + 60)


def block_inside(name: str, flow: TarFlow) -> Markup:
    """One block from its sequence to shift and log-scale. `name` prefixes the ids."""
    config, block = flow.config, flow.blocks[0]
    layers = sorted({len(b.layers) for b in flow.blocks})
    counts = f"{layers[0]}" if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
    affine = block.proj_out.out_features == 2 * config.patch_dim
    added = "+ position" if block.embedding is None else "+ position + class"
    plural = "" if counts == "1" else "s"
    heads = config.width // config.head_dim
    outputs = "shift, log-scale" if affine else "shift (volume-preserving)"
    formula = "z = (x − shift) · exp(−log-scale)" if affine else "z = x − shift"
    boxes: Sequence[tuple[str, str, str]] = [
        ("patches before i, in the block's order", f"{config.patch_dim} numbers each", "latent"),
        (f"linear, {config.patch_dim} → {config.width}", added, "part"),
        (
            f"{counts} causal Transformer layer{plural}",
            f"width {config.width}, {heads} head{'' if heads == 1 else 's'} of {config.head_dim}, "
            f"MLP {config.expansion * config.width}",
            "part",
        ),
        (f"linear, {config.width} → {block.proj_out.out_features}", "moved on by one patch", "part"),
        (outputs, "of patch i", "latent"),
        (formula, "of patch i; the first is left as it is", "block"),
    ]
    parts, y = [], 12.0
    for index, (title, detail, style) in enumerate(boxes):
        if index:
            parts.append(_arrow(WIDTH / 2, y - 24, y))
        parts.append(_box(y, 56, style))
        parts.append(_text(WIDTH / 2, y + 24, title, "strong", "middle"))
        parts.append(_text(WIDTH / 2, y + 44, detail, None, "middle"))
        y += 80
    described = " Then ".join(f"{title}: {detail}." for title, detail, _ in boxes)
    return _drawing(name, "Inside a block, for patch i", described, parts, y)


def parameters_of(flow: TarFlow) -> int:
    """How many numbers were learned."""
    return sum(parameter.numel() for parameter in flow.parameters())


def _grid_of_patches(rows: int, columns: int) -> list[Markup]:
    """The image as a grid, at most 8 patches a side, in the image's proportions."""
    shown_rows, shown_columns = min(rows, 8), min(columns, 8)
    side = 84 / max(rows, columns)
    height, width = max(side * rows, 8), max(side * columns, 8)
    left, top = LEFT + (110 - width) / 2, 8 + (84 - height) / 2
    parts = [element("rect", x=left, y=top, width=width, height=height, class_="patch")]
    for k in range(1, shown_columns):
        x = left + width * k / shown_columns
        parts.append(element("line", x1=x, x2=x, y1=top, y2=top + height, class_="axis"))
    for k in range(1, shown_rows):
        y = top + height * k / shown_rows
        parts.append(element("line", x1=left, x2=left + width, y1=y, y2=y, class_="axis"))
    return parts


def _block_box(block: Block, index: int, y: float) -> list[Markup]:
    layers, count = len(block.layers), sum(p.numel() for p in block.parameters())
    plural = "" if layers == 1 else "s"
    direction = "last → first" if block.order.is_flipped else "first → last"
    parts = [
        _box(y, STEP - 14, "block"),
        _text(LEFT + 14, y + 22, f"block {index}", "strong"),
        _text(LEFT + 14, y + 41, f"{layers} layer{plural}, {short(count)} weights"),
        _text(LEFT + BOX - 14, y + 41, direction, None, "end"),
    ]
    # The sequence, darker the more is known: patch i sees those before it in the block's own order.
    for k in range(TOKENS):
        place = TOKENS - 1 - k if block.order.is_flipped else k
        parts.append(
            element(
                "rect",
                x=LEFT + BOX - 14 - (TOKENS - place) * 16,
                y=y + 12,
                width=12,
                height=12,
                class_="token",
                opacity=f"{0.2 + 0.8 * k / (TOKENS - 1):.2f}",
            )
        )
    return parts


def short(count: int) -> str:
    """A count for a label: 50.6k, 463M.

    >>> short(912), short(50_560), short(463_000_000)
    ('912', '50.6k', '463M')
    """
    if count < 1000:
        return str(count)
    power = min(int(math.log10(count)) // 3, 3)
    value = count / 1000**power
    return f"{value:.3g}{('k', 'M', 'G')[power - 1]}"


def _box(y: float, height: float, style: str) -> Markup:
    return element("rect", x=LEFT, y=y, width=BOX, height=height, rx="6", class_=style)


def _text(x: float, y: float, text: str, style: str | None = None, anchor: str | None = None) -> Markup:
    return element("text", text, x=x, y=y, class_=style, text_anchor=anchor)


def _arrow(x: float, start: float, end: float) -> Markup:
    """Down from `start` to just above `end`, head and all in one path: a marker would need an id of its own."""
    return element(
        "path",
        d=f"M{x:g} {start:g}V{end - 2:g}M{x - 4:g} {end - 7:g}L{x:g} {end - 2:g}L{x + 4:g} {end - 7:g}",
        class_="arrow",
    )


def _drawing(name: str, title: str, description: str, parts: Sequence[Markup], height: float) -> Markup:
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *parts,
        viewBox=f"0 0 {WIDTH} {height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
        class_="chart",
        width=WIDTH,
        height=height,
    )
