"""Muon for the matrices inside the Transformers, AdamW for all else: one optimizer, as torch and checkpoints see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

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
