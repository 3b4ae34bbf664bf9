"""What a flow is, in a few lines: what `print(flow)` shows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarflow.model.sequence import SequenceFlow


def summary(flow: SequenceFlow) -> str:
    """Kind, event, tokens, network, transforms, condition and base of a flow, and where its parameters are."""
    config, event = flow.sequence, flow.event
    sees = f"{config.tokens} tokens of {_counted(config.dim, 'number')}" + (
        ", the first predicted from a start token" if config.start_token else ""
    )
    same = len(set(config.layers)) == 1
    depths = _counted(config.layers[0], "layer") if same else f"{'-'.join(map(str, config.layers))} layers"
    network = f"{_counted(len(config.layers), 'block')} of {depths}, width {config.width}"
    bound = "" if config.bound is None else f" (log-scale to ±{config.bound:g})"
    count = sum(parameter.numel() for parameter in flow.parameters())
    kinds = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in flow.parameters()}))
    lines = {
        "event": f"{event.meaning} {'x'.join(map(str, event.shape))}, {sees}",
        "numbers": str(event.preprocessing),
        "network": network + (", rotary positions" if config.rotary else ""),
        "orders": _orders(config.orders),
        "transforms": ", ".join(runs(config.transforms)) + bound,
        "condition": config.condition,
        "base": config.base,
        "parameters": f"{count:,}, {kinds} on {flow.device}",
    }
    if event.preprocessing is None:
        del lines["numbers"]
    width = max(map(len, lines))
    return "\n".join([type(flow).__name__, *(f"  {name:<{width}}  {text}" for name, text in lines.items())])


def runs(names: Iterable[str]) -> list[str]:
    """Neighbours that are alike as one entry with their number.

    >>> runs(["spline", "affine", "affine"])
    ['spline', '2 affine']
    """
    groups = [(name, len(list(group))) for name, group in itertools.groupby(names)]
    return [name if count == 1 else f"{count} {name}" for name, count in groups]


def _orders(orders: tuple[str | tuple[int, ...], ...]) -> str:
    if len(orders) > 2 and orders == tuple(itertools.islice(itertools.cycle(("raster", "flipped")), len(orders))):
        return "raster and flipped in turn"
    return ", ".join(runs(order if isinstance(order, str) else "permuted" for order in orders))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
