"""Both sides of `benchmarks.training`: the official training step and ours, from the same weights on the same batch."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("tarflow") is None:  # from source, nothing installed
    sys.path.insert(0, str(ROOT / "src"))

from tarflow.config import TarFlowConfig, TrainingConfig  # noqa: E402 - after the path above
from tarflow.interop import load_official, to_official  # noqa: E402
from tarflow.model.flow import TarFlow  # noqa: E402
from tarflow.training.compiling import compile_layers, wants_compilation  # noqa: E402
from tarflow.training.ema import EMA  # noqa: E402
from tarflow.training.objective import objective  # noqa: E402
from tarflow.training.optimizer import build_optimizer  # noqa: E402
from tarflow.training.step import TrainingStep  # noqa: E402

Step = Callable[[], object]

OFFICIAL = "official"
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

    official: Path
    model: TarFlowConfig
    batch: int
    device: torch.device
    bf16: bool

    @property
    def flops(self) -> float:
        """Products of one step: three forward passes' worth, over T-1 patches and the half of attention that is seen.

        forward, an image   2 (T-1) (12 W² L + 3 D W) a block of L layers (MLP four times as wide)
        + attention         4 W · T(T-1)/2 a layer
        """
        m, count = self.model, self.model.num_patches - 1
        layers, blocks = sum(m.layers), len(m.layers)
        products = 2 * count * ((4 + 2 * m.expansion) * m.width**2 * layers + 3 * m.patch_dim * m.width * blocks)
        attention = 4 * m.width * count * (count + 1) / 2 * layers
        return 3 * self.batch * (products + attention)


def official_module(folder: Path) -> ModuleType:
    """The official `transformer_flow.py`, from a clone."""
    path = folder / "transformer_flow.py"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; --official expects a clone of https://github.com/apple/ml-tarflow")
    spec = importlib.util.spec_from_file_location("official_transformer_flow", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official_model(job: Job) -> Any:
    """The official model with weights that train: its last layers start at zero, where most gradients vanish."""
    m = job.model
    torch.manual_seed(0)
    model = official_module(job.official).Model(
        m.channels, m.image_shape[0], m.patch_size, m.width, len(m.layers), m.layers[0], True, m.num_classes
    )
    with torch.no_grad():
        for block in model.blocks:
            block.proj_out.weight.normal_(std=0.01)
    return model.to(job.device).train()


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
    model = official_model(job)
    if name == OFFICIAL:
        return official_step(job, model)
    flow = load_official(model.state_dict(), job.model.image_size).to(job.device).train()
    del model
    return our_step(job, flow, ROWS[name])


def compare(job: Job) -> dict[str, float]:
    """How far losses and gradients of both sides are apart, relative; SystemExit where that is more than rounding."""
    model = official_model(job)
    flow = load_official(model.state_dict(), job.model.image_size).to(job.device).train()
    x, y = batch_of(job)
    with autocast(job):
        z, _, logdets = model(x, y)
        theirs = model.get_loss(z, logdets)
        ours = objective(*flow(x, y, "elementwise"))
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
        raise SystemExit(f"the two sides disagree, by {result}, relative; at most {limit} is rounding")
    return result
