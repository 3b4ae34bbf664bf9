"""One step of Tweedie's formula: what the model of noisy images expects the clean image to be."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tarflow.devices import free_bytes, without_autocast
from tarflow.fields import integer, real
from tarflow.model.condition import Value
from tarflow.model.events import only
from tarflow.model.sequence import SequenceFlow

GRAPH_BYTES = 1 << 30  # activations that are kept for the gradient at once, where the batch size is ours to choose
GRAPH_SHARE = 0.5  # of a GPU's free memory, if that is more


def denoise(
    flow: SequenceFlow,
    x: Tensor,
    sigma: float,
    y: Value = None,
    *,
    batch_size: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Denoise images by the score of the model that was trained on noisy ones.

        E[clean | x, y] = x + σ² ∇_x log p(x|y)

    exact where p is the density of clean images plus N(0, σ²) noise (Tweedie's formula; TarFlow, arXiv 2412.06329,
    section 3.4). The score is that of the summed log-density, in float32 at least, whatever autocast is on.

    Args:
        x: (B, C, H, W), noisy images. Not written to.
        sigma: σ > 0, the standard deviation of the noise in training, in the units of x.
        y: (B,) labels, None for the null class.
        batch_size: images differentiated at once; None takes as many as keep the activations under 1 GiB, or on a GPU
            under half of what is free. Where not even one image does, only one block's are kept at a time, and computed
            twice.
        mask: (B, T) booleans, which tokens of a sequence are there; the others come as 0.

    Returns:
        (B, C, H, W), detached, float32 at least.

    Raises:
        ValueError: images, labels or sigma do not fit.
    """
    check_sigma(sigma)
    batch_size = None if batch_size is None else integer("batch_size", batch_size, 1)
    flow.event.check(x)
    y, mask = flow.check_condition(y, len(x)), flow.check_mask(mask, len(x))
    if flow.in_inference_mode:
        with torch.inference_mode(False):
            flow = copy.deepcopy(flow)  # the weights as tensors that can be differentiated through
    per_image, room = graph_bytes(flow), graph_room(flow)
    by_block = per_image > room
    if batch_size is None:
        batch_size = max(1, room // (per_image // len(flow.blocks) if by_block else per_image))
    chunks = []
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        there = None if mask is None else mask[rows]
        chunks.append(_denoise_chunk(flow, x[rows], sigma, flow.conditions.rows(y, rows), by_block, there))
    return torch.cat(chunks) if chunks else x.clone()


def graph_bytes(flow: SequenceFlow) -> int:
    """Bytes of the activations that the gradient of one image's log-density needs, about: 16·T·W numbers a layer.

    They are what goes into the norms and the products, the queries, keys and values, and the wide inner layer of the
    MLP twice (W + W + 3W + W, W + W + 4W + 4W); and the parameters of each transform.
    """
    config = flow.sequence
    inner = 8 + 2 * config.expansion
    numbers = sum(config.layers) * inner * config.width + sum(block.transform.size for block in flow.blocks)
    tokens = config.tokens + flow.conditions.places
    return numbers * tokens * flow.dtype.itemsize


def graph_room(flow: SequenceFlow) -> int:
    """Bytes of activations that are kept for a gradient at once: 1 GiB, or on a GPU half of what is free."""
    return max(GRAPH_BYTES, int(GRAPH_SHARE * (free_bytes(flow.device) or 0)))


def check_sigma(sigma: float) -> None:
    """Raise ValueError unless σ is a positive number."""
    real("sigma", sigma, "a positive number", lambda value: value > 0)


def _denoise_chunk(
    flow: SequenceFlow, x: Tensor, sigma: float, y: Value, by_block: bool, mask: Tensor | None
) -> Tensor:
    with (
        torch.inference_mode(False),  # the caller may be in it, and nothing can be differentiated there
        torch.enable_grad(),
        without_autocast(x.device),
    ):
        # A copy in the dtype of the state: the gradient of a narrower x would be rounded to that.
        dtype = torch.promote_types(torch.promote_types(x.dtype, flow.dtype), torch.float32)
        x = x.detach().to(dtype, copy=True).requires_grad_()
        score = _score_by_block(flow, x, y, mask) if by_block else _score(flow, x, y, mask)
        return only(mask, x + sigma**2 * score).detach()


def _score(flow: SequenceFlow, x: Tensor, y: Value, mask: Tensor | None) -> Tensor:
    """∇_x log p(x|y), through the whole flow at once."""
    # Only x asks for a gradient: the weights' graph is neither built further back nor accumulated into .grad.
    z, ladj = flow.encode_in_range(x, y, mask)  # `log_prob` would wait for the device, to check y once more
    (score,) = torch.autograd.grad((flow.base.log_prob(z) + ladj).sum(), [x])
    return score


def _score_by_block(flow: SequenceFlow, x: Tensor, y: Value, mask: Tensor | None) -> Tensor:
    """The same by the chain rule, block after block: what each was given is kept, what is inside it computed again."""
    tokens, event_ladj = flow.event.to_tokens(x, mask)
    blocks = [block.padded(mask) for block in flow.blocks]
    z, inside = flow.in_range(tokens.detach())
    inputs = [z]
    with torch.no_grad():
        for block in blocks:
            z, still = flow.in_range(block.encode(z, y)[0])
            inputs.append(z)
            inside = inside & still
    z = inputs.pop().requires_grad_()
    (score,) = torch.autograd.grad(flow.base.log_prob(z).sum(), [z])
    for block in reversed(blocks):
        below = inputs.pop().requires_grad_()
        above, ladj = block.encode(below, y)
        (score,) = torch.autograd.grad((above * score).sum() + ladj.sum(), [below])
    score = torch.where(inside.view(-1, 1, 1), score, 0)  # as through the whole flow: no gradient
    outputs, weights = [tokens], [score]
    if (
        isinstance(event_ladj, Tensor) and event_ladj.requires_grad
    ):  # a standardised number has the same slope everywhere
        outputs.append(event_ladj)
        weights.append(inside.view(-1, 1).expand_as(event_ladj).to(event_ladj.dtype))
    (score,) = torch.autograd.grad(outputs, [x], weights)
    return score
