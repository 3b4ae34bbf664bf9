"""AdamW with decay on matrices only, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from tarflow.config import TrainingConfig


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW that decays the weights of linear layers, and neither biases, norms nor embeddings."""
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(step: int, *, config: TrainingConfig, steps: int, warmup: int) -> float:
    """The learning rate of step 0, 1, …, steps-1: linear from `final_lr` to `lr`, then a cosine back to `final_lr`."""
    low, high = config.final_lr, config.lr
    if step < warmup:
        return low + step / warmup * (high - low)
    progress = (step - warmup) / max(1, steps - warmup)
    return low + 0.5 * (1 + math.cos(math.pi * progress)) * (high - low)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = value
