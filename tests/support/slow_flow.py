"""The flow once more, slowly, from the formulas of the paper: what the fast code is tested against.

Nothing of tarflow is called. Only the weights are read from it, by their names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tarflow import TarFlow, TarFlowConfig

NULL = -1


Weights = dict[str, Tensor]


def weights_of(flow: TarFlow) -> list[Weights]:
    """The weights of every block, by their names."""
    return [block.state_dict() for block in flow.blocks]


def embedding(weights: Weights, label: int) -> Tensor | float:
    """What is added to every token: the class, or the mean of the classes for none."""
    table = weights.get("embedding.classes")
    if table is None:
        return 0.0
    return table.mean(dim=0) if label == NULL else table[label]


def predict(
    config: TarFlowConfig, weights: Weights, index: int, x: Tensor, label: int, temperature: float = 1.0
) -> Tensor:
    """The parameters of the patch after those in x (n, D), in block `index` and its own order.

    They are the raw log-scale and the shift (2D,), or the shift alone (D,).
    """

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, h: Tensor) -> Tensor:
        centred = h - h.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    count, size = len(x), config.head_dim
    places = [config.num_patches - 1 - i if index % 2 else i for i in range(count)]  # odd blocks walk backwards
    h = linear("proj_in", x) + weights["position"][places] + embedding(weights, label)  # (n, W)
    for layer in range(config.layers[index]):
        at = f"layers.{layer}."
        q, k, v = (
            part.view(count, -1, size)
            for part in linear(at + "attention.qkv", norm(at + "attention.norm", h)).chunk(3, -1)
        )
        if config.rotary:
            q, k = (torch.stack([turned(config, *each) for each in zip(places, part, strict=True)]) for part in (q, k))
        seen = []
        for i in range(count):
            logits = (q[i] * k[: i + 1]).sum(dim=-1) / math.sqrt(size) / temperature  # (i+1, H)
            chances = logits.exp() / logits.exp().sum(dim=0)
            seen.append((chances.unsqueeze(-1) * v[: i + 1]).sum(dim=0).flatten())
        h = h + linear(at + "attention.out", torch.stack(seen))
        inner = linear(at + "mlp.1", norm(at + "mlp.0", h))
        h = h + linear(at + "mlp.3", inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))
    return linear("proj_out", h[-1])


def parts(config: TarFlowConfig, params: Tensor) -> tuple[Tensor, Tensor]:
    """shift and raw log_scale (D,) of parameters, which have the log-scale first as the official ones do."""
    if config.transform == "additive":
        return params, torch.zeros_like(params)
    return params[config.patch_dim :], params[: config.patch_dim]


def turned(config: TarFlowConfig, place: int, heads: Tensor) -> Tensor:
    """Queries or keys (H, K) of one patch, turned in the plane by its row and its column."""
    half, waves = config.head_dim // 2, config.head_dim // 4
    angles = [
        math.pi * coordinate * 100 ** (-j / max(1, waves - 1))
        for coordinate in divmod(place, config.grid[1])
        for j in range(waves)
    ]
    turn = torch.polar(torch.ones(half, dtype=heads.dtype), torch.tensor(angles, dtype=heads.dtype))
    points = torch.complex(heads[:, :half], heads[:, half:]) * turn
    return torch.cat([points.real, points.imag], dim=1)


def guided(
    conditional: tuple[Tensor, Tensor], unconditional: tuple[Tensor, Tensor], g: float, rule: str
) -> tuple[Tensor, Tensor]:
    """shift and raw log_scale of both branches to the guided ones."""
    (mu_c, v_c), (mu_u, v_u) = conditional, unconditional
    if rule == "paper":
        return mu_c + g * (mu_c - mu_u), v_c + g * (v_c - v_u)
    sigma_c, sigma_u = v_c.exp(), v_u.exp()
    s = (sigma_c**2 / sigma_u**2).clip(0, 1)
    sigma = sigma_c / (1 + g - g * s).sqrt()
    return ((1 + g) * mu_c - g * s * mu_u) / (1 + g - g * s), sigma.log()


@torch.no_grad()
def decode(
    flow: TarFlow,
    z: Tensor,
    y: Tensor | None,
    *,
    scale: float = 0.0,
    schedule: str = "linear",
    temperature: float = 1.0,
    rule: str = "paper",
) -> Tensor:
    """Latents (B, T, D) to patches (B, T, D) in raster order, one image, one block, one patch at a time."""
    config, weights = flow.config, weights_of(flow)
    length, bound = config.num_patches, config.log_scale_bound
    decoded = []
    for row in range(len(z)):
        label = NULL if y is None else int(y[row])
        patches = list(z[row])
        for index in reversed(range(len(weights))):
            ordered = patches[::-1] if index % 2 else patches
            x = [ordered[0]]
            for i in range(1, length):
                shift, log_scale = parts(config, predict(config, weights[index], index, torch.stack(x), label))
                if scale:
                    g = scale * i / (length - 1) if schedule == "linear" else scale
                    other = predict(config, weights[index], index, torch.stack(x), NULL, temperature)
                    shift, log_scale = guided((shift, log_scale), parts(config, other), g, rule)
                if bound is not None:
                    log_scale = bound * torch.tanh(log_scale / bound)
                x.append(ordered[i] * log_scale.exp() + shift)
            patches = x[::-1] if index % 2 else x
        decoded.append(torch.stack(patches))
    return torch.stack(decoded)
