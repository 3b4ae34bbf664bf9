"""The flow once more, slowly, from the formulas of the paper: what the fast code is tested against.

Nothing of tarflow is called. Only the weights are read from it, by their names.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tarflow import SequenceConfig, SequenceFlow

NULL = -1


Weights = dict[str, Tensor]


def weights_of(flow: SequenceFlow) -> list[Weights]:
    """The weights of every block, by their names."""
    return [block.state_dict() for block in flow.blocks]


class Given(NamedTuple):
    """What a block is given with one sequence: what is added to every token, the tokens (P, W) before them, and what is
    added (T, W) to each token, and to the place from which it is predicted."""

    added: Tensor | float
    prefix: Tensor
    own: Tensor
    ahead: Tensor


def row_of(y: Any, row: int) -> list[Any] | None:
    """The values of all conditions for one sequence; those of None are null."""
    return (
        None if y is None else [None if part is None else part[row] for part in (y if isinstance(y, tuple) else (y,))]
    )


def given(config: SequenceConfig, flow_weights: Weights, weights: Weights, values: list[Any] | None) -> Given:
    """The values of all conditions of one sequence as a block reads them; None is null."""
    names = [] if config.condition == "none" else config.condition.split("+")
    added: Tensor | float = 0.0
    prefix = [torch.zeros(0, config.width, dtype=weights["position"].dtype)]
    own_place, ahead = (torch.zeros_like(weights["position"]) for _ in range(2))
    for place, condition in enumerate(names):
        kind, *sizes = condition.split(":")
        value = values[place] if values is not None else None
        own = f"embedding.{place}." if len(names) > 1 else "embedding."
        stored = f"conditions.parts.{place}." if len(names) > 1 else "conditions."
        if kind == "classes":
            table = weights[own + "classes"]
            added = added + (table.mean(dim=0) if value is None or value == NULL else table[value])
            continue
        null = value is None or bool(value.isnan().any())
        if not null:
            value = (value - flow_weights[stored + "mean"]) / flow_weights[stored + "deviation"]
        if kind == "vector":
            if null:
                added = added + weights[own + "null"][0]
                continue
            hidden = weights[own + "mlp.0.weight"] @ value + weights[own + "mlp.0.bias"]
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            added = added + weights[own + "mlp.2.weight"] @ hidden + weights[own + "mlp.2.bias"]
            continue
        if kind.startswith("aligned"):
            for token in range(config.tokens):
                both = weights[own + "null"].flatten()
                if not null:
                    numbers = value[token] if kind == "aligned" else around(value, token, int(sizes[3]))
                    hidden = weights[own + "into.weight"] @ numbers + weights[own + "into.bias"]
                    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
                    both = weights[own + "out.weight"] @ hidden + weights[own + "out.bias"]
                own_place[token] += both[: config.width]
                ahead[token] += both[config.width :]
            continue
        for token, position in enumerate(weights[own + "places"]):
            if null:
                prefix.append(weights[own + "null"] + position)
                continue
            numbers = value[token] if kind == "tokens" else pixels(value, token, int(sizes[3]))
            prefix.append((weights[own + "linear.weight"] @ numbers + weights[own + "linear.bias"] + position)[None])
    return Given(added, torch.cat(prefix), own_place, ahead)


def pixels(image: Tensor, token: int, side: int) -> Tensor:
    """Those of a patch of an image (C, H, W), by channel, row and column; patches are counted along the rows."""
    down, right = divmod(token, image.shape[2] // side)
    return torch.stack([c[down * side + i, right * side + j] for c in image for i in range(side) for j in range(side)])


def around(image: Tensor, token: int, side: int) -> Tensor:
    """The pixels of a patch and of the eight around it, patch by patch along the rows; zeros beyond the edge."""
    down, right = divmod(token, image.shape[2] // side)
    found = []
    for row in (down - 1, down, down + 1):
        for column in (right - 1, right, right + 1):
            inside = 0 <= row < image.shape[1] // side and 0 <= column < image.shape[2] // side
            patch = pixels(image, row * (image.shape[2] // side) + column, side) if inside else None
            found.append(torch.zeros(len(image) * side**2, dtype=image.dtype) if patch is None else patch)
    return torch.cat(found)


def predict(
    config: SequenceConfig,
    weights: Weights,
    index: int,
    places: list[int],
    x: Tensor,
    given: Given,
    temperature: float = 1.0,
) -> Tensor:
    """The parameters of the patch after those in x (n, D), in block `index`; all n+1 lie at `places`.

    With a start token n may be 0.

    They are the raw log-scale and the shift (2D,), or the shift alone (D,).
    """

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, h: Tensor) -> Tensor:
        centred = h - h.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    size, (*places, predicted) = config.head_dim, places
    h = linear("proj_in", x) + weights["position"][places] + given.own[places]  # (n, W)
    if config.start_token:  # it is the projection of zeros, with a place of its own
        h = torch.cat([weights["start"] + weights["proj_in.bias"], h])
    h = h + given.ahead[[*places, predicted][-len(h) :]]
    before = len(given.prefix)
    h = torch.cat([given.prefix, h]) + given.added
    count = len(h)
    for layer in range(config.layers[index]):
        at = f"layers.{layer}."
        q, k, v = (
            part.view(count, -1, size)
            for part in linear(at + "attention.qkv", norm(at + "attention.norm", h)).chunk(3, -1)
        )
        if config.rotary:
            q, k = (rotated(config, places, part) for part in (q, k))
        seen = []
        for i in range(count):
            end = max(i + 1, before)  # the tokens of the prefix see each other, both ways and at no temperature
            logits = (q[i] * k[:end]).sum(dim=-1) / math.sqrt(size) / (temperature if i >= before else 1.0)  # (end, H)
            chances = logits.exp() / logits.exp().sum(dim=0)
            seen.append((chances.unsqueeze(-1) * v[:end]).sum(dim=0).flatten())
        h = h + linear(at + "attention.out", torch.stack(seen))
        inner = linear(at + "mlp.1", norm(at + "mlp.0", h))
        h = h + linear(at + "mlp.3", inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))
    return linear("proj_out", h[-1])


def number(config: SequenceConfig, weights: Weights, index: int, params: Tensor, x: list[Tensor]) -> list[Tensor]:
    """The shift and the raw log-scale of the number of a token after the numbers x, from the token's parameters.

    Behind them come the widths, heights and slopes of a spline, where there is one. The parameters have the log-scale
    first, as the official ones do; those of the additive transform are the shift alone.
    """
    name, dim, place = config.transforms[index], config.dim, len(x)
    kinds = {"additive": 1, "affine": 2, "spline": 3 * config.bins + 1}[name.partition("-")[0]]
    found = [params[kind * dim + place] for kind in range(kinds)]
    if "-by-number" in name:
        into, out, a = weights["transform.into"], weights["transform.out"], params[kinds * dim :]
        for unit in range(len(a)):
            degree = 1 + unit * (dim - 1) // len(a)
            if degree <= place:
                total = a[unit] + sum(into[unit, e] * x[e] for e in range(degree))
                active = total * 0.5 * (1 + torch.erf(total / math.sqrt(2)))
                found = [value + out[kind, place, unit] * active for kind, value in enumerate(found)]
    return [found[0], torch.zeros_like(found[0])] if kinds == 1 else [found[1], found[0], *found[2:]]


def unmixed(weights: Weights, mixed: Tensor) -> Tensor:
    """The token x (D,) with x_d + Σ_{e<d} L_de x_e = mixed_d, where its block mixes."""
    numbers: list[Tensor] = []
    for d, value in enumerate(mixed if "mixing.lower" in weights else []):
        numbers.append(value - sum(weights["mixing.lower"][d, e] * numbers[e] for e in range(d)))
    return torch.stack(numbers) if numbers else mixed


def spline(x: float, params: list[float], bins: int, b: float) -> tuple[float, float]:
    """y and the slope ∂y/∂x of one number x, by equations 4 and 5 of arXiv 1906.04032."""
    sizes = []
    for logits in (params[:bins], params[bins : 2 * bins]):
        total = sum(map(math.exp, logits))
        sizes.append([2 * b * (0.001 + (1 - 0.001 * bins) * math.exp(logit) / total) for logit in logits])
    steepest = math.log(1000)
    slopes = [1.0, *(math.exp(steepest * math.tanh(v / steepest)) for v in params[2 * bins :]), 1.0]
    left = bottom = -b
    for width, height, low, high in zip(*sizes, slopes, slopes[1:], strict=False):
        if left <= x < left + width:
            s, xi = height / width, (x - left) / width
            under = s + (high + low - 2 * s) * xi * (1 - xi)
            y = bottom + height * (s * xi**2 + low * xi * (1 - xi)) / under
            return y, s**2 * (high * xi**2 + 2 * s * xi * (1 - xi) + low * (1 - xi) ** 2) / under**2
        left, bottom = left + width, bottom + height
    return x, 1.0


def unbent(config: SequenceConfig, y: Tensor, curve: list[Tensor]) -> Tensor:
    """x of one number y under a spline, which is monotone: by halving the interval."""
    low, high = -config.interval, config.interval
    if not curve or not low < float(y) < high:
        return y
    for _ in range(60):
        middle = (low + high) / 2
        below = spline(middle, [float(v) for v in curve], config.bins, config.interval)[0] < float(y)
        low, high = (middle, high) if below else (low, middle)
    return torch.full_like(y, (low + high) / 2)


def permutation(config: SequenceConfig, index: int) -> list[int]:
    """Which token comes at each place of a block."""
    order, tokens = config.orders[index], list(range(config.tokens))
    if not isinstance(order, str):
        return list(order)
    name, _, seed = order.partition(":")
    if name == "random":
        return sorted(tokens, key=lambda token: hashlib.blake2b(f"{seed} {token}".encode()).digest())
    return tokens[::-1] if name == "flipped" else tokens


def rotated(config: SequenceConfig, places: list[int], heads: Tensor) -> Tensor:
    """Queries or keys (n, H, K) of all tokens, turned but for a prefix and the start token."""
    tokens = zip(places, heads[len(heads) - len(places) :], strict=True)
    return torch.cat([heads[: len(heads) - len(places)], *(turned(config, *each).unsqueeze(0) for each in tokens)])


def turned(config: SequenceConfig, place: int, heads: Tensor) -> Tensor:
    """Queries or keys (H, K) of one token, turned in the plane by its coordinates, such as its row and its column."""
    half, waves = config.head_dim // 2, config.head_dim // (2 * len(config.lattice))
    coordinates = []
    for size in reversed(config.lattice):
        place, coordinate = divmod(place, size)
        coordinates.insert(0, coordinate)
    angles = [
        math.pi * coordinate * 100 ** (-j / max(1, waves - 1)) for coordinate in coordinates for j in range(waves)
    ]
    turn = torch.polar(torch.ones(half, dtype=heads.dtype), torch.tensor(angles, dtype=heads.dtype))
    points = torch.complex(heads[:, :half], heads[:, half:]) * turn
    return torch.cat([points.real, points.imag], dim=1)


def guided(conditional: list[Tensor], unconditional: list[Tensor], g: float, rule: str) -> list[Tensor]:
    """shift, raw log_scale and spline of both branches to the guided ones."""
    if rule == "paper":
        return [c + g * (c - u) for c, u in zip(conditional, unconditional, strict=True)]
    (mu_c, v_c, *curve), (mu_u, v_u, *_) = conditional, unconditional
    sigma_c, sigma_u = v_c.exp(), v_u.exp()
    s = (sigma_c**2 / sigma_u**2).clip(0, 1)
    sigma = sigma_c / (1 + g - g * s).sqrt()
    return [((1 + g) * mu_c - g * s * mu_u) / (1 + g - g * s), sigma.log(), *curve]


@torch.no_grad()
def decode(
    flow: SequenceFlow,
    z: Tensor,
    y: Any,
    *,
    scale: float = 0.0,
    schedule: str = "linear",
    temperature: float = 1.0,
    rule: str = "paper",
    there: list[int] | None = None,
) -> Tensor:
    """Latents (B, T, D) to patches (B, T, D) in raster order, one image, one block, one patch at a time.

    Where only some tokens are `there`, these are all that there is: (B, n, D), in the order of the sequence.
    """
    config, weights = flow.sequence, weights_of(flow)
    there = list(range(config.tokens)) if there is None else there
    length, bound = len(there), config.log_scale_bound
    decoded = []
    for row in range(len(z)):
        told = [given(config, flow.state_dict(), each, row_of(y, row)) for each in weights]
        null = [given(config, flow.state_dict(), each, None) for each in weights]
        patches = dict(zip(there, z[row, there], strict=True))
        for index in reversed(range(len(weights))):
            order = [token for token in permutation(config, index) if token in there]
            ordered = [patches[token] for token in order]
            x = [] if config.start_token else [ordered[0]]
            for i in range(len(x), length):
                known = torch.stack(x) if x else ordered[0][None][:0]
                params, other = predict(config, weights[index], index, order[: i + 1], known, told[index]), None
                g = scale * i / (length - 1) if schedule == "linear" and length > 1 else scale
                if scale:
                    other = predict(config, weights[index], index, order[: i + 1], known, null[index], temperature)
                numbers: list[Tensor] = []
                for d in range(config.dim):
                    found = number(config, weights[index], index, params, numbers)
                    if other is not None:
                        found = guided(found, number(config, weights[index], index, other, numbers), g, rule)
                    shift, log_scale, *curve = found
                    if bound is not None and not config.transforms[index].startswith("additive"):
                        log_scale = bound * torch.tanh(log_scale / bound)
                    numbers.append(unbent(config, ordered[i][d] * log_scale.exp() + shift, curve))
                x.append(torch.stack(numbers))
            patches = {token: unmixed(weights[index], value) for token, value in zip(order, x, strict=True)}
        decoded.append(torch.stack([patches[token] for token in there]))
    return torch.stack(decoded)
