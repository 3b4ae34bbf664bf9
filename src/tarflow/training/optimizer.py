"""The optimizer, with decay on matrices only, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tarflow.config import TrainingConfig
from tarflow.model.transformer import Layer
from tarflow.training.muon import Muon

FALL_SHARE = 0.2
"""Share of the steps after the warm-up in which the trapezoid falls."""


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or Muon, with decay on the weights of linear layers, and none on biases, norms and embeddings.

    Muon turns the matrices within the Transformer layers, as its inventor has it: what leads into a block, and what
    leads out of it to shift and log-scale, is AdamW's.
    """
    inside = [module for layer in model.modules() if isinstance(layer, Layer) for module in layer.modules()]
    turned = [m.weight for m in inside if isinstance(m, nn.Linear)] if config.optimizer == "muon" else []
    taken = {id(weight) for weight in turned}
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - taken
    decayed = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices | taken]
    if config.optimizer == "muon":
        options = {"lr": config.lr, "factor": (config.muon_lr or config.lr) / config.lr}
        return Muon(turned, decayed, others, **options, weight_decay=config.weight_decay, betas=config.betas)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def moments_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """What an optimizer of `build_optimizer` keeps for each parameter of one of its groups."""
    return ("momentum_buffer",) if group.get("orthogonal") else ("exp_avg", "exp_avg_sq", "step")


def learning_rate(step: int, *, config: TrainingConfig, steps: int, warmup: int) -> float:
    """The learning rate of step 0, 1, …, steps-1: linear from `final_lr` to `lr`, then back to `final_lr`.

    With p from 0 to 1 the share of what follows the warm-up, it is `final_lr` + (`lr` - `final_lr`)·f(p):

        cosine ½(1 + cos πp)      linear 1 - p      trapezoid min(1, (1 - p)/FALL_SHARE)
    """
    low, high = config.final_lr, config.lr
    if step < warmup:
        return low + step / warmup * (high - low)
    progress = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = min(1.0, (1 - progress) / (1.0 if config.schedule == "linear" else FALL_SHARE))
    return low + share * (high - low)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group, that of what Muon turns in its own proportion to it."""
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("factor", 1.0)
