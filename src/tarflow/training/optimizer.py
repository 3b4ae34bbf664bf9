"""The optimizer: AdamW, or Muon for the matrices inside the Transformers, and the learning rate by the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tarflow.config import TrainingConfig
from tarflow.model.transformer import Layer

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


COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, Jordan 2024
ITERATIONS = 5
MOMENTUM = 0.95
NUMBERS_AT_ONCE = 1 << 22  # in matrices of one shape that go through one product: small ones are slow one by one
UPDATE_RMS = 0.2  # of an update before the learning rate: what AdamW's are, so that both want the same rate


@torch.no_grad()
def orthogonalized(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each of `matrices` (…, N, K) = U S Vᵀ: all its directions, equally long. Zeros stay zeros.

        X ← aX + (b A + c A²) X,    A = X Xᵀ,    five times from X = matrix/‖matrix‖

    which takes singular values to between 0.7 and 1.2, as far as five steps lift them. In bf16 on CUDA, as its
    inventor does it; elsewhere in float32, where a CPU is twenty times as fast. Source: K. Jordan, Muon, 2024.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices.float()
    upright = x.shape[-2] > x.shape[-1]
    x = (x.mT if upright else x).reshape(-1, *sorted(x.shape[-2:]))
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if upright else x).reshape(matrices.shape).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose direction is orthogonalised, for matrices; AdamW for the rest.

        m ← 0.95 m + g;   W ← (1 - lr·decay) W - lr · 0.2 √max(N, K) · orthogonalized(g + 0.95 m)

    What `torch.optim.Muon` computes with `adjust_lr_fn="match_rms_adamw"`, with two differences: on a CPU its products
    are float32, and with `found_inf` (0-d, nonzero where a gradient is not finite) a step leaves everything as it was
    without the host waiting to know, as the fused AdamW does. Source of the factor: Moonlight, arXiv 2502.16982.

    Args:
        matrices: parameters (N, K). decayed, others: those that AdamW moves, with and without decay.
        lr, weight_decay, betas: as AdamW's. factor: of lr, for the matrices.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        matrices: Iterable[Tensor],
        decayed: Iterable[Tensor],
        others: Iterable[Tensor],
        *,
        lr: float,
        factor: float = 1.0,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        turned = list(matrices)
        groups = [
            {"params": turned, "orthogonal": True, "factor": factor, "lr": lr * factor, "weight_decay": weight_decay},
            {"params": list(decayed), "orthogonal": False, "weight_decay": weight_decay},
            {"params": list(others), "orthogonal": False, "weight_decay": 0.0},
        ]
        if not all(p.ndim == 2 for p in turned):
            raise ValueError("matrices: expected parameters of two dimensions")
        super().__init__(groups, {"lr": lr, "betas": betas})
        rest = [group for group in self.param_groups if not group["orthogonal"]]
        self._adamw = torch.optim.AdamW([{"params": group["params"]} for group in rest], lr=lr, betas=betas, fused=True)
        self._share()

    def _share(self) -> None:
        """Let AdamW work on this optimizer's groups and moments, so that there is one of each."""
        rest = [group for group in self.param_groups if not group["orthogonal"]]
        for group in rest:
            for name, value in self._adamw.defaults.items():
                group.setdefault(name, value)
        self._adamw.param_groups, self._adamw.state = rest, self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            if group["orthogonal"]:
                moved = [p for p in group["params"] if p.grad is not None]
                for shape in dict.fromkeys(p.shape for p in moved):
                    alike = [p for p in moved if p.shape == shape]
                    count = max(1, NUMBERS_AT_ONCE // shape.numel())
                    for start in range(0, len(alike), count):
                        self._turn(alike[start : start + count], group["lr"], group["weight_decay"])
        self._adamw.found_inf = self.found_inf  # type: ignore[attr-defined]
        self._adamw.step()

    def _turn(self, parameters: list[Tensor], lr: float, decay: float) -> None:
        """Move parameters of one shape."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        grad = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        before, weight = torch.stack(buffers), torch.stack(parameters)
        moment = MOMENTUM * before + grad
        size = UPDATE_RMS * max(parameters[0].shape) ** 0.5
        moved = weight * (1 - lr * decay) - (lr * size) * orthogonalized(grad + MOMENTUM * moment)
        if self.found_inf is not None:
            stay = self.found_inf.bool()
            moment, moved = torch.where(stay, before, moment), torch.where(stay, weight, moved)
        torch._foreach_copy_(buffers, moment.unbind())
        torch._foreach_copy_(parameters, moved.unbind())
