"""Where in an image the likelihood comes from: log p as a sum over patches, and that sum as a heat map."""

from __future__ import annotations

import torch
from torch import Tensor

from tarflow.model.flow import TarFlow

# ColorBrewer's RdBu: told apart with any colour vision, and both ends alike in lightness. From -1 (red) to 1 (blue).
ANCHORS = ((178, 24, 43), (239, 138, 98), (247, 247, 247), (103, 169, 207), (33, 102, 172))


def patch_log_prob(flow: TarFlow, x: Tensor, y: Tensor | None = None) -> Tensor:
    """What each patch contributes to log p(x|y), nats, (B, rows, columns): `log_prob_by_token` at its place.

    With several blocks it is no conditional density of the patch: later blocks mix what earlier ones made. Gradients
    flow as through `log_prob`.

    Args:
        x: (B, C, H, W), floating. y: (B,) labels, or None for the null class.

    Raises:
        ValueError: images or labels that do not fit the model.

    >>> import tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(image_size=8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> patch_log_prob(flow, torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 4, 4])
    """
    return flow.log_prob_by_token(x, y).unflatten(1, flow.config.grid)


def ends_of_a_map(flow: TarFlow) -> str:
    """Why the first and the last patch of a map stand apart, in words for whoever looks at one."""
    forward, count = sum(block.order.is_raster for block in flow.blocks), len(flow.blocks)
    if flow.config.start_token:
        return "Every block changes every patch, the first of its order by what it has learned of a start token."
    if forward == count:
        return (
            "The patch at the top left stands apart. It is the first in the order of every block, which leaves it as "
            "it is: where it is red, or blue, in every map, that is no sign of something odd."
        )
    return (
        "The patches at the top left and at the bottom right stand apart. Every block leaves the first patch of its "
        f"order as it is: {forward} of the {count} blocks do so with the one at the top left, {count - forward} with "
        "the one at the bottom right. Those two are changed by fewer blocks than the others, and are no sign of "
        "something odd where they are red, or blue, in every map."
    )


def heat_map(
    patches: Tensor, image: Tensor, *, centre: float | None = None, span: float | None = None, opacity: float = 0.6
) -> Tensor:
    """A map laid over its image in grey: (3, H, W) uint8.

    The scale is linear and diverging: a patch at `centre` is white, one `span` nats or more above it is blue (more
    likely), one `span` or more below it is red (less likely).

    Args:
        patches: (rows, columns), nats.
        image: (C, H, W) uint8 of 256 levels, C 1 or 3; each patch covers H/rows by W/columns pixels.
        centre: nats; None is the mean over the patches. span: nats; None is the largest distance from the centre, so
            that every picture has a scale of its own. Give both where pictures are to be compared.
        opacity: of the colours, 0 to 1.

    Raises:
        ValueError: shapes that do not fit, a span that is not positive, an opacity out of range, no finite patch.

    >>> heat_map(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 1, 2, dtype=torch.uint8), opacity=1.0)[:, 0].T
    tensor([[178,  24,  43],
            [ 33, 102, 172]], dtype=torch.uint8)
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.dtype != torch.uint8:
        raise ValueError(f"image: expected (C, H, W) uint8 with C 1 or 3, got {tuple(image.shape)} {image.dtype}")
    if (
        patches.ndim != 2
        or 0 in patches.shape
        or any(a % b for a, b in zip(image.shape[1:], patches.shape, strict=True))
    ):
        raise ValueError(
            f"patches: expected (rows, columns) that divide {tuple(image.shape[1:])}, got {tuple(patches.shape)}"
        )
    if span is not None and not span > 0:
        raise ValueError(f"span: expected a positive number of nats, got {span}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity: expected 0 to 1, got {opacity}")
    values = patches.detach().cpu().double()
    finite = values[values.isfinite()]
    if not len(finite):
        raise ValueError("patches: expected finite numbers, got none")
    centre = float(finite.mean()) if centre is None else centre
    span = float((finite - centre).abs().max()) if span is None else span
    scaled = ((values - centre) / (span or 1.0)).nan_to_num(nan=-1.0).clamp(-1, 1)  # what is no number is not likely
    colours = _colour(scaled)  # (3, rows, columns)
    for axis, (pixels, count) in enumerate(zip(image.shape[1:], patches.shape, strict=True), start=1):
        colours = colours.repeat_interleave(pixels // count, dim=axis)
    parts = [0.299, 0.587, 0.114] if image.shape[0] == 3 else [1.0]  # ITU-R 601
    weights = torch.tensor(parts, device="cpu", dtype=torch.float64)
    grey = (image.cpu().double() * weights[:, None, None]).sum(dim=0)
    return (opacity * colours + (1 - opacity) * grey).round().clamp(0, 255).to(torch.uint8)


def _colour(scaled: Tensor) -> Tensor:
    """-1 … 1 to red, white, blue: (…) to (3, …), linear between the anchors."""
    anchors = torch.tensor(ANCHORS, device="cpu", dtype=torch.float64)
    place = (scaled + 1) / 2 * (len(ANCHORS) - 1)
    lower = place.floor().clamp(0, len(ANCHORS) - 2).long()
    part = (place - lower).unsqueeze(-1)
    return torch.lerp(anchors[lower], anchors[lower + 1], part).movedim(-1, 0)
