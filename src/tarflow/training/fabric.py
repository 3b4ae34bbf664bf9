"""The only module that touches Lightning Fabric: devices and precision."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from tarflow.config import TrainingConfig


class Engine:
    """A model on one device, in the precision of the config.

    bf16 is autocast: the weights, the state of the flow, its density and the optimizer stay in float32.
    """

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        bf16 = config.precision == "bf16" or (
            config.precision == "auto" and device.type == "cuda" and config.noise == "gaussian"
        )
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        self.fabric = Fabric(accelerator=device.type, devices=1, precision="bf16-mixed" if bf16 else "32-true")
        self.fabric.launch()

    def set_up(self, model: nn.Module) -> None:
        """Take over a model. The caller's own references stay valid."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fabric's advice on things that we decide ourselves
            self.model = self.fabric.setup_module(model)

    def __call__(self, *args: Any) -> Any:
        return self.model(*args)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)
