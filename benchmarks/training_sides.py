"""Both sides of `benchmarks.training`: the official training step and ours, from the same weights on the same batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import official
from benchmarks.official import OFFICIAL
from tarflow.config import TarFlowConfig, TrainingConfig
from tarflow.interop import to_official
from tarflow.model.flow import TarFlow
from tarflow.planning.work import training_flops
from tarflow.training.ema import EMA
from tarflow.training.layers import compile_layers, wants_compilation
from tarflow.training.optimizer import build_optimizer
from tarflow.training.step import TrainingStep, objective

Step = Callable[[], object]

OURS = "ours"
PLAIN: dict[str, Any] = {"clip_norm": 0.0, "ema_decay": 0.0}  # what the official step does, and no more
ROWS: dict[str, dict[str, Any]] = {
    OURS: {},
    "ours, as trained": {"clip_norm": 1.0, "ema_decay": 0.9999},
    "ours, not compiled": {"compile": "off"},
    "ours, nothing recomputed": {"checkpoint_activations": "nothing"},
    "ours, layers recomputed": {"checkpoint_activations": "layers"},
    "ours, 2 micro-batches": {"accumulate": 2},
    "ours, 4 micro-batches": {"accumulate": 4},
}
"""Rows of ours, and the fields of `TrainingConfig` in which they differ from `PLAIN`."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained where."""

    clone: Path
    model: TarFlowConfig
    batch: int
    device: torch.device
    bf16: bool

    @property
    def flops(self) -> int:
        """Products of one step, with nothing computed twice."""
        return training_flops(self.model, self.batch)


def our_flow(job: Job) -> TarFlow:
    """A flow whose weights train, the same at every call: output layers start at zero, where most gradients vanish."""
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []), job.device:
        torch.manual_seed(0)
        flow = TarFlow(job.model).train()
        for block in flow.blocks:
            nn.init.normal_(block.proj_out.weight, std=0.01)
    return flow


def official_model(job: Job, flow: TarFlow) -> Any:
    """The official model with copies of the weights of `flow`."""
    model = official.build(OFFICIAL, official.load_module(OFFICIAL, job.clone), flow)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model.train()


def batch_of(job: Job) -> tuple[Tensor, Tensor | None]:
    """Images and labels of a step, one label of the null class among them."""
    height, width = job.model.image_shape
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(job.batch, job.model.channels, height, width, generator=generator) * 2 - 1
    if not job.model.num_classes:
        return x.to(job.device), None
    y = torch.arange(job.batch) % job.model.num_classes
    y[0] = -1
    return x.to(job.device), y.to(job.device)


def autocast(job: Job) -> Any:
    """The precision of the products, on both sides."""
    return torch.autocast(job.device.type, dtype=torch.bfloat16, enabled=job.bf16)


def official_step(job: Job, model: Any) -> Step:
    """The official training step on one batch."""
    x, y = batch_of(job)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), lr=1e-4, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(job.device.type, enabled=job.device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad()
        with autocast(job):
            z, _, logdets = model(x, y)
            loss = model.get_loss(z, logdets)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def our_step(job: Job, flow: TarFlow, fields: dict[str, Any]) -> Step:
    """Our training step on the same batch."""
    x, y = batch_of(job)
    config = TrainingConfig(**{"batch_size": job.batch, **PLAIN, **fields})
    if wants_compilation(config.compile, job.device):
        compile_layers(flow)
    ema = EMA(flow, config.ema_decay) if config.ema_decay else None

    def forward(*args: Any) -> Any:
        with autocast(job):
            return flow(*args)

    step = TrainingStep(flow, build_optimizer(flow, config), ema, config=config, forward=forward)
    return lambda: step(x, y)


def build(job: Job, name: str) -> Step:
    """The step of one row, from fresh weights that are the same for all of them."""
    flow = our_flow(job)
    return official_step(job, official_model(job, flow)) if name == OFFICIAL else our_step(job, flow, ROWS[name])


def compare(job: Job) -> dict[str, float]:
    """How far losses and gradients of both sides are apart, relative. Raises ValueError where that is no rounding."""
    flow = our_flow(job)
    model = official_model(job, flow)
    x, y = batch_of(job)
    with autocast(job):
        z, _, logdets = model(x, y)
        theirs = model.get_loss(z, logdets)
        ours = objective(*flow(x, y))
    theirs.backward()
    ours.backward()
    with torch.no_grad():
        for parameter in flow.parameters():  # gradients in the place of weights, so that the key map names them
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    named = to_official(flow)
    error, norm = 0.0, 0.0
    for name, parameter in model.named_parameters():
        error += float((named[name].to(job.device) - parameter.grad).square().sum())
        norm += float(parameter.grad.square().sum())
    loss, expected = float(ours.detach()), float(theirs.detach())
    result = {"loss": abs(loss - expected) / abs(expected), "gradient": (error / norm) ** 0.5}
    limit = 5e-2 if job.bf16 else 1e-4
    if not (result["loss"] < limit and result["gradient"] < limit):
        raise ValueError(f"the two sides disagree, by {result}, relative; at most {limit} is rounding")
    return result
