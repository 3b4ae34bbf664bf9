"""Numbers as a condition: added to every token, as the library does it, or by adaptive norms?

    python -m benchmarks.conditions --seconds 10 --out benchmarks/results/conditions-cpu.json

Adaptive norms scale and shift what comes out of both norms of each layer by linear functions of the embedded numbers,
which start at zero (Peebles and Xie, arXiv 2212.09748). Both sides have the same MLP that embeds the numbers, are
trained on fresh draws of the same simulators for the same CPU time of one thread, and scored on the same 4000 draws:

- `two moons`: 2 parameters given 2 numbers, two crescents whose places depend on the numbers (sbi's task);
- `SLCP`: 5 parameters given 8 numbers, four modes (simple likelihood, complex posterior; sbi's task).

Reported is the mean log-density of the parameters given the numbers, nats, for each seed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tarflow
from tarflow.model.block import Block
from tarflow.model.cache import KVCache, Memory
from tarflow.model.context import Context
from tarflow.model.rotary import Rotation
from tarflow.model.transformer import Layer

HELD_OUT, BATCH, RATE = 4000, 256, 2e-3
Task = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def two_moons(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Parameters (n, 2), and two numbers (n, 2) that they lead to."""
    theta = torch.rand(n, 2, generator=generator) * 2 - 1
    angle = math.pi * (torch.rand(n, generator=generator) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(n, generator=generator)
    crescent = torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], dim=1)
    turned = torch.stack([-theta.sum(dim=1).abs(), theta[:, 1] - theta[:, 0]], dim=1) / math.sqrt(2)
    return theta, crescent + turned


def slcp(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Parameters (n, 5), and four points of a Gaussian (n, 8) whose mean and covariance they are."""
    theta = torch.rand(n, 5, generator=generator) * 6 - 3
    first, second, correlation = theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
    noise = torch.randn(n, 4, 2, generator=generator)
    x = theta[:, None, 0] + first[:, None] * noise[..., 0]
    along = correlation[:, None] * noise[..., 0] + (1 - correlation**2).sqrt()[:, None] * noise[..., 1]
    return theta, torch.stack([x, theta[:, None, 1] + second[:, None] * along], dim=2).flatten(1)


TASKS: dict[str, Task] = {"two moons": two_moons, "SLCP": slcp}


class AdaptiveLayer(Layer):
    """A layer whose norms are scaled and shifted by what is conditioned on: `told`, (B, 1, W)."""

    told: Tensor

    def __init__(self, width: int, head_dim: int, expansion: int) -> None:
        super().__init__(width, head_dim, expansion)
        self.modulation = nn.Linear(width, 4 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None = None,
        memory: Memory | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        scale, shift, inner_scale, inner_shift = self.modulation(nn.functional.gelu(self.told)).chunk(4, dim=-1)
        attention = self.attention
        qkv = attention.qkv(attention.norm(x) * (1 + scale) + shift)
        x = x + attention.attend(qkv, rotation, memory, temperature)
        norm, *mlp = self.mlp
        inner: Tensor = norm(x) * (1 + inner_scale) + inner_shift
        for module in mlp:
            inner = module(inner)
        return x + inner


class AdaptiveBlock(Block):
    """A block that tells its layers the condition, and adds nothing to the tokens. For training and scoring."""

    def conditioner(
        self,
        x: Tensor,
        context: Context | None,
        start: int = 0,
        cache: KVCache | None = None,
        temperature: Tensor | None = None,
    ) -> Tensor:
        assert context is not None and context.added is not None and cache is None
        for layer in self.layers:
            layer.told = context.added
        return super().conditioner(x, None, start, cache, temperature)


def build(dim: int, numbers: int, side: str) -> tarflow.VectorFlow:
    """A flow on vectors of `dim` given `numbers`, with either side's way to take them."""
    flow = tarflow.VectorFlow(dim, tokens=dim, condition=numbers)
    if side == "adaptive norms":
        config = flow.sequence
        for block in flow.blocks:
            block.__class__ = AdaptiveBlock
            shape = (config.width, config.head_dim, config.expansion)
            block.layers = nn.ModuleList(AdaptiveLayer(*shape) for _ in block.layers)  # type: ignore[assignment]
    return flow


def held_out_score(task: Task, side: str, seed: int, seconds: float) -> tuple[float, int]:
    """The mean held-out log-density, nats, after so much CPU time, and the steps that went into it."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    theta, c = task(10_000, generator)
    flow = build(theta.shape[1], c.shape[1], side)
    flow.event.fit(theta)
    flow.conditions.fit(c)
    optimizer = torch.optim.AdamW(flow.parameters(), lr=RATE, weight_decay=1e-4)
    began, steps, share = time.process_time(), 0, 0.0
    while share < 1:
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (steps + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
        loss = -flow.log_prob(*task(BATCH, generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        steps, share = steps + 1, (time.process_time() - began) / seconds
    with torch.no_grad():
        held_out = task(HELD_OUT, torch.Generator().manual_seed(12345))
        return float(flow.log_prob(*held_out).mean()), steps


def main() -> None:
    """Train and score both sides, and print and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="CPU time of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for task in options.tasks:
        for seed in range(options.seeds):
            for side in ("added", "adaptive norms"):
                score, steps = held_out_score(TASKS[task], side, seed, options.seconds)
                results.setdefault(task, {}).setdefault(side, []).append({"nats": score, "steps": steps})
                print(f"{task}, {side}, seed {seed}: {score:.3f} nats after {steps} steps", flush=True)
        for side, found in results[task].items():
            print(f"{task}, {side}: {statistics.mean(each['nats'] for each in found):.3f} nats", flush=True)
    if options.out:
        content = {"seconds": options.seconds, "torch": torch.__version__, "results": results}
        options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
