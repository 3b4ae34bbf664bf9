"""What is made of latents: a sample traced through the blocks, images reconstructed, walked between, redrawn in part.

Editing rests on `encode` and `decode` being exact inverses of each other. Guidance is no inverse of the flow, so there
is none in it. Nothing carries gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tarflow.fields import integer
from tarflow.model.block import Block
from tarflow.model.checks import check_tensor
from tarflow.model.condition import NULL_CLASS, Value
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow
from tarflow.sampling.decode import decode, default_batch_size, draw_noise, invert, latents_of
from tarflow.sampling.denoise import denoise as denoise_images
from tarflow.sampling.guidance import Guidance
from tarflow.sampling.sample import check_arguments, check_finite


def trace(
    flow: SequenceFlow,
    n: int = 1,
    y: Value = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    denoise: float | None = None,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
) -> list[Tensor]:
    """Draw n images and keep what each block leaves.

        x_K = z ~ N(0, V),    x_{k-1} = block_k⁻¹(x_k),    image = x_0

    A block returns its sequence in raster order, so every stage can be looked at as an image of the same size. The
    arguments are those of `tarflow.sample`, and so is the last stage, with the sequential solver; all n go together.

    Returns:
        K+1 tensors (n, C, H, W) for K blocks, not clipped: the noise, then the stage after each block, the image last.
        With `denoise` one more, the cleaned image.

    Raises:
        ValueError: arguments that do not fit the model or each other.
        SamplingError: an image is not finite. Nothing is drawn again here.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1, 1)))
    >>> stages = tarflow.trace(flow, 2, seed=5)
    >>> len(stages), stages[0].shape
    (4, torch.Size([2, 1, 8, 8]))
    >>> torch.equal(stages[-1], tarflow.sample(flow, 2, seed=5, solver="sequential"))
    True
    """
    integer("seed", seed)
    y, mask = check_arguments(flow, n, y, guidance, denoise, noise), flow.check_mask(mask, n)
    noise = draw_noise(flow, torch.arange(n, device="cpu", dtype=torch.int64), seed) if noise is None else noise
    solutions = decode(flow, noise, y, guidance, mask=mask)
    stages = [flow.event.from_tokens(x, mask) for x in (latents_of(flow, noise), *(each.x for each in solutions))]
    if denoise is not None:
        stages.append(denoise_images(flow, stages[-1], denoise, y, mask=mask))
    advice = "take another seed, lower the guidance, or use rule 'stable'"
    check_finite(stages[-1], "sample {}", advice)
    return stages


@torch.no_grad()
def reconstruct(flow: SequenceFlow, x: Tensor, y: Value = None, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Encode images and decode them again: what rounding costs, which is all that is lost.

        x̂ = decode(encode(x, y), y),    error = max_chw |x̂ - x|

    Args:
        x: (B, C, H, W). Not written to.
        y: (B,) labels, None for the null class. Any label reconstructs, as long as it is the same both ways.
        mask: (B, T) booleans, which tokens of a sequence are there; the others come as 0, and have no error.

    Returns:
        x̂ (B, C, H, W), float32 at least, and error (B,), in the units of x. Below 1e-5 in float32 for trained models;
        an error that can be seen means that log-scales are so large that rounding errors grow on their way.

    Raises:
        ValueError: images or labels that do not fit the model.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> x = torch.rand(3, 1, 8, 8)
    >>> x_hat, error = tarflow.reconstruct(flow, x)
    >>> x_hat.shape, bool((error < 1e-5).all())
    (torch.Size([3, 1, 8, 8]), True)
    """
    z, _ = flow.encode(x, y, mask=mask)
    y, mask = flow.check_condition(y, len(x)), flow.check_mask(mask, len(x))
    x_hat = flow.event.from_tokens(_invert_all(flow, flow.blocks, z, y, mask), mask)
    return x_hat, only(mask, x_hat - x).abs().flatten(1).amax(dim=1)


@torch.no_grad()
def interpolate(
    flow: SequenceFlow,
    x0: Tensor,
    x1: Tensor,
    steps: int = 8,
    y0: Any = None,
    y1: Any = None,
    *,
    spherical: bool = True,
    mask: Tensor | None = None,
) -> Tensor:
    """Walk from one image to another in the latent space.

        z_j = encode(x_j, y_j),    x(t) = decode(z(t), y(t)),    t = 0 … 1
        spherical   z(t) = (sin((1-t)θ) z_0 + sin(tθ) z_1) / sin θ      θ the angle between z_0 and z_1
        linear      z(t) = (1-t) z_0 + t z_1

    On the arc |z| stays √(T·D), where the model has seen latents (in units of the base's standard deviation); halfway
    along the straight line it is √(T·D/2). Where z_0 and z_1 lie on one line, the walk is linear.

    With two different labels each step is decoded under that of the nearer end (halfway, of the second): both ends come
    back exactly, and the picture jumps in the middle.

    Args:
        x0, x1: (C, H, W), the ends. Not written to.
        steps: images on the walk, both ends included; at least 2.
        y0, y1: a class each, or a value of another condition, or None for both; -1 (`NULL_CLASS`) is the null class.
        spherical: along the arc, or (False) along the straight line.
        mask: (T,) booleans, which tokens of a sequence are there: at both ends, as their latents are of one space.

    Returns:
        (steps, C, H, W), float32 at least, not clipped; the first and last are x0 and x1 up to rounding.

    Raises:
        ValueError: images or labels that do not fit the model, one label without the other, fewer than 2 steps.
        SamplingError: an image between the ends is not finite.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> x0, x1 = torch.rand(1, 8, 8), -torch.rand(1, 8, 8)
    >>> walk = tarflow.interpolate(flow, x0, x1, steps=5)
    >>> walk.shape, torch.allclose(walk[0], x0, atol=1e-5), torch.allclose(walk[-1], x1, atol=1e-5)
    (torch.Size([5, 1, 8, 8]), True, True)
    """
    if integer("steps", steps) < 2:
        raise ValueError(f"steps: expected at least 2, both ends, got {steps}")
    shape = flow.event.shape
    for name, x in (("x0", x0), ("x1", x1)):
        check_tensor(name, x, f"one image {shape}")
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: expected one image {shape}, got {tuple(x.shape)}")
    if (y0 is None) != (y1 is None):
        given, missing = ("y0", "y1") if y1 is None else ("y1", "y0")
        raise ValueError(f"{missing}: expected a label, because {given} has one; {NULL_CLASS} is the null class")
    conditions = flow.conditions
    ends = conditions.cat([flow.check_condition(conditions.flatten(y)[0], 1) for y in (y0, y1)])

    if mask is not None:
        check_tensor("mask", mask, f"({flow.sequence.tokens},) booleans, True where a token is there at both ends")
        mask = flow.check_mask(mask.expand(steps, *mask.shape), steps)
    z, _ = flow.encode(torch.stack([x0, x1]), ends, mask=None if mask is None else mask[:2])
    t = torch.linspace(0, 1, steps, dtype=z.dtype, device=z.device).view(-1, 1, 1)  # (steps, 1, 1)
    u = flow.base.standardised(z)
    start, end = _arc(u, t) if spherical else (1 - t, t)
    u = start * u[0] + end * u[1]  # (steps, T, D)
    y = conditions.rows(ends, nearer_end(steps, z.device))
    return _edited(flow.event.from_tokens(_invert_all(flow, flow.blocks, flow.base.sample(u), y, mask), mask))


def nearer_end(steps: int, device: torch.device | str = "cpu") -> Tensor:
    """Under whose label each step of a walk is decoded, (steps,): 0, that of the first end, and halfway on 1."""
    return (torch.linspace(0, 1, steps, dtype=torch.float32, device=device) >= 0.5).long()


@torch.no_grad()
def resample(
    flow: SequenceFlow,
    x: Tensor,
    keep: int,
    y: Value = None,
    *,
    block: int = 0,
    seed: int = 0,
    mask: Tensor | None = None,
) -> Tensor:
    """Keep the first patches of images in the order of one block, and draw the others anew.

        w  = encode of x by blocks 0 … block             what that block makes of x
        w' = decode of fresh noise by the blocks after it    what the model draws in its place
        x̂  = decode by blocks block … 0 of (w_<keep, w'_≥keep), in that block's own order

    Even blocks walk from the top left patch on, odd ones from the bottom right patch back. What is kept are the first
    `keep` patches of what goes into the block:

    - `block=0`: of the *picture*, in raster order, up to rounding. The blocks after it do not see them, so with more
      than one block this is not a draw from p(x_≥keep | x_<keep), and seams can show.
    - `block=-1`, the last: `keep` *latents* stay, too, and as latents are independent this is an exact draw from
      p(x | z_<keep). Every pixel may change, for the other blocks mix the patches.

    Args:
        x: (B, C, H, W). Not written to.
        keep: 0 … T patches; T keeps all (`reconstruct`), 0 none (`tarflow.sample` with that seed).
        y: (B,) labels, None for the null class.
        block: 0 … K-1, or negative from the last.
        seed: the noise of image k is drawn from (seed, k), as in `tarflow.sample`.
        mask: (B, T) booleans, which tokens of a sequence are there; of those the first `keep` are kept.

    Returns:
        (B, C, H, W), float32 at least, not clipped.

    Raises:
        ValueError: images, labels, keep or block that do not fit the model.
        SamplingError: an image is not finite.

    >>> import torch, tarflow
    >>> flow = tarflow.TarFlow(tarflow.TarFlowConfig(8, channels=1, patch_size=2, width=64, layers=(1, 1)))
    >>> x = torch.rand(3, 1, 8, 8)
    >>> new = tarflow.resample(flow, x, keep=8, seed=1)  # 8 of 16 patches: the upper half
    >>> torch.allclose(new[:, :, :4], x[:, :, :4], atol=1e-5), torch.allclose(new[:, :, 4:], x[:, :, 4:])
    (True, False)
    """
    length, count = flow.sequence.tokens, len(flow.blocks)
    keep, block = integer("keep", keep), integer("block", block)
    if not 0 <= keep <= length:
        raise ValueError(f"keep: expected 0 to {length} patches, got {keep}")
    if not -count <= block < count:
        raise ValueError(f"block: expected {-count} to {count - 1}, got {block}")
    flow.event.check(x)
    y, mask = flow.check_condition(y, len(x)), flow.check_mask(mask, len(x))
    split = block % count + 1  # encode with those before it, draw with those from it on
    before, after = flow.blocks[:split], flow.blocks[split:]

    w, _ = flow.event.to_tokens(flow.as_state(x), mask)
    for each in before:
        w, _ = each.padded(mask).encode(w, y)
    noise = draw_noise(flow, torch.arange(len(x), device="cpu", dtype=torch.int64), seed) if len(x) else w
    drawn = _invert_all(flow, after, latents_of(flow, noise).to(w.dtype), y, mask)
    order = flow.blocks[block].padded(mask).order
    mixed = order.inverse(torch.cat([order.forward(w)[:, :keep], order.forward(drawn)[:, keep:]], dim=1))
    return _edited(flow.event.from_tokens(_invert_all(flow, before, mixed, y, mask), mask))


def _arc(u: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """What the ends u (2, T, D) are multiplied by at t on the arc between them; on the line where there is no arc."""
    a, b = torch.nn.functional.normalize(u.flatten(1), dim=1)
    angle = 2 * torch.atan2((a - b).norm(), (a + b).norm())  # accurate at 0 and π, where acos(a·b) is not
    if angle.sin() < 1e-4:
        return 1 - t, t
    return torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)


def _invert_all(flow: SequenceFlow, blocks: Sequence[Block], z: Tensor, y: Value, mask: Tensor | None) -> Tensor:
    """(B, T, D) back through `blocks`, the last first, as many at once as the cache allows; checked labels."""
    size = default_batch_size(flow, None)
    chunks = []
    for first in range(0, len(z), size):
        rows = slice(first, first + size)
        there = None if mask is None else mask[rows]
        x = only(there, z[rows])
        for block in reversed(blocks):
            x = invert(block.padded(there), x, flow.conditions.rows(y, rows)).x
        chunks.append(x)
    return torch.cat(chunks) if chunks else z


def _edited(x: Tensor) -> Tensor:
    """What an edit returns, where it is finite."""
    return check_finite(x, "image {} of the edit", "the latents lead where the model was not trained")
