"""The only module that touches Lightning Fabric: devices, precision, and how several processes share the work."""

from __future__ import annotations

import contextlib
import logging
import warnings
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import Tensor

from tarflow.config import ConfigError, TrainingConfig
from tarflow.model.flow import TarFlow
from tarflow.ranks import Ranks
from tarflow.training.sharding import shard


class Engine:
    """A model on one device, or on one device for each of the ranks of a job, in the precision of the config.

    bf16 is autocast: the weights, the state of the flow, its density and the optimizer stay in float32. Where there are
    several ranks all of them meet in the constructor, and what goes wrong there is a ConfigError.

    Attributes:
        ranks: this process among the others. device: its own.
    """

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        bf16 = config.precision == "bf16" or (
            config.precision == "auto" and device.type == "cuda" and config.noise == "gaussian"
        )
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
        self.ranks = Ranks.from_environment()
        options: dict[str, Any] = {"accelerator": device.type, "precision": "bf16-mixed" if bf16 else "32-true"}
        if self.ranks.alone:
            self.strategy: Strategy | None = None
            self.fabric = Fabric(devices=1, **options)
            self.fabric.launch()
            self.device = device
            return
        self.strategy = _strategy(config, self.ranks, device)
        self.fabric = Fabric(
            devices=self.ranks.local_size,
            num_nodes=self.ranks.size // self.ranks.local_size,
            strategy=self.strategy,
            plugins=[TorchElasticEnvironment()],  # torchrun's variables, whoever has set them
            **options,
        )
        self.fabric.launch()
        assert self.fabric.world_size == self.ranks.size == torch.distributed.get_world_size()
        assert self.fabric.global_rank == self.ranks.rank == torch.distributed.get_rank()
        self.device = self.fabric.device
        if device.type != "cpu":  # NCCL has no tensors on the CPU, and a rank that dies makes it wait, not fail
            self.ranks = self.ranks.within(torch.distributed.new_group(backend="gloo"))

    @property
    def shards(self) -> bool:
        """Whether a rank holds a part of each weight only."""
        return isinstance(self.strategy, ModelParallelStrategy)

    def set_up(self, flow: TarFlow) -> None:
        """Take over a flow, and move it to the device. The caller's own references to the flow stay valid."""
        if not self.shards:  # what is sharded goes to the device layer by layer
            flow.to(self.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fabric's advice on things that we decide ourselves
            self.model = self.fabric.setup_module(flow)

    def follow(self, averaged: TarFlow) -> None:
        """Put a flow that no step is taken with where the weights of the other one are, and split it like that."""
        if isinstance(self.strategy, ModelParallelStrategy):
            shard(averaged, self.strategy.device_mesh["data_parallel"])
        else:
            averaged.to(self.device)

    def __call__(self, *args: Any) -> Any:
        return self.model(*args)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Within it gradients are added up; with the `last` micro-batch of a step they become those of all ranks.

        Under FSDP2 that happens with each: keeping a whole gradient until the last one would take the memory that both
        the sharding and the micro-batches are there to save.
        """
        if last or not isinstance(self.strategy, DDPStrategy):
            return contextlib.nullcontext()
        return self.fabric.no_backward_sync(self.model)


def _strategy(config: TrainingConfig, ranks: Ranks, device: torch.device) -> Strategy:
    """How several ranks share the work; ConfigError where they cannot."""
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {ranks.size} processes need cpu or cuda, got {device.type}")
    if ranks.size % ranks.local_size:
        raise ConfigError(
            f"torchrun: expected as many processes on each node, got {ranks.local_size} here of {ranks.size}"
        )
    if device.type == "cuda" and ranks.local_size > torch.cuda.device_count():
        raise ConfigError(f"torchrun: {ranks.local_size} processes on a node with {torch.cuda.device_count()} GPUs")
    if config.strategy == "fsdp":
        return ModelParallelStrategy(
            lambda flow, mesh: shard(flow, mesh["data_parallel"]), data_parallel_size=ranks.size, tensor_parallel_size=1
        )
    # The only buffer moves with the same numbers everywhere.
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
