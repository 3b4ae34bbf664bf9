"""The only module that touches Lightning Fabric: devices, precision, and the optimizer step."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from tarflow.config import TrainingConfig


class Engine:
    """A model and its optimizer on one device, in the precision of the config.

    bf16 is autocast: the weights, the state of the flow, its density and the optimizer stay in float32.
    """

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        bf16 = config.precision == "bf16" or (
            config.precision == "auto" and device.type == "cuda" and config.noise == "gaussian"
        )
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        self.fabric = Fabric(accelerator=device.type, devices=1, precision="bf16-mixed" if bf16 else "32-true")
        self.fabric.launch()

    def set_up(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take over a model and its optimizer. The caller's own references stay valid."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fabric's advice on things that we decide ourselves
            self.model, self.optimizer = self.fabric.setup(model, optimizer)

    def __call__(self, *args: Any) -> Any:
        return self.model(*args)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, max_norm: float | None) -> Tensor:
        """Clip the gradients to `max_norm` where given; return their norm before."""
        limit = float("inf") if max_norm is None else max_norm
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        return norm

    def step(self) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
