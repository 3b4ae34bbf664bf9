"""Where a step runs: the device, the precision of its products, and how several processes share the work."""

from __future__ import annotations

import atexit
import contextlib
import inspect
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

import torch
from torch.nn.parallel import DistributedDataParallel

from tarflow.config import ConfigError, TrainingConfig
from tarflow.devices import float32_products, numbered
from tarflow.measure import NOISES
from tarflow.model.flow import TarFlow
from tarflow.ranks import Ranks
from tarflow.training.sharding import shard

_options = inspect.signature(DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _options else "broadcast_buffers"  # before 2.13
Products: TypeAlias = Literal["float32", "tf32", "bf16"]


def products_of(config: TrainingConfig, device: torch.device) -> Products:
    """In which precision matrices are multiplied: what `config.precision` says, or what "auto" comes to on `device`.

    Raises ConfigError where the device has no such products.
    """
    if config.precision == "auto":
        if device.type != "cuda":
            return "float32"
        return "tf32" if NOISES[config.noise].bounds_pixels else "bf16"
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision: tf32 is a format of CUDA devices, got {device.type}; expected float32 or auto")
    return config.precision


class Engine:
    """A model on one device, or on one device for each of the ranks of a job, in the precision of the config.

    bf16 is autocast around the forward pass. What comes in is not rounded, and the weights, the state of the flow, its
    density and the optimizer stay in float32. Where there are several ranks all of them meet in the constructor, and
    what goes wrong there is a ConfigError.

    Attributes:
        ranks: this process among the others. device: its own, with its number. products: see `products_of`.
    """

    def __init__(self, config: TrainingConfig, device: torch.device) -> None:
        self.products = products_of(config, device)
        self.ranks = Ranks.from_environment()
        self.strategy = "ddp" if config.strategy == "auto" else config.strategy
        if self.ranks.alone:
            self.device = numbered(device)
            return
        self.device = _device_of_rank(self.ranks, device)
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)  # where NCCL and what names no device go
        if not torch.distributed.is_initialized():  # by an earlier run of this process
            torch.distributed.init_process_group(
                "nccl" if on_gpu else "gloo",
                rank=self.ranks.rank,
                world_size=self.ranks.size,
                device_id=self.device if on_gpu else None,
            )
            if on_gpu:
                atexit.register(_leave)
        if on_gpu:
            # NCCL has no tensors on the CPU, and a rank that dies makes it wait, not fail.
            self.ranks = self.ranks.within(torch.distributed.new_group(backend="gloo"))

    @property
    def shards(self) -> bool:
        """Whether a rank holds a part of each weight only."""
        return self.strategy == "fsdp" and not self.ranks.alone

    def precision(self) -> AbstractContextManager[None]:
        """The context of a training, from its first step to its last evaluation: see `devices.float32_products`."""
        return float32_products(self.device, tf32=self.products == "tf32")

    def set_up(self, flow: TarFlow) -> None:
        """Take over a flow, and move it to the device. The caller's own references to the flow stay valid."""
        self.model: Any = flow
        if self.shards:  # goes to the device layer by layer
            self._split(flow)
            return
        flow.to(self.device)
        if not self.ranks.alone:
            # The only buffer moves with the same numbers everywhere.
            options: Any = {SYNC_BUFFERS: False, "gradient_as_bucket_view": True}
            self.model = DistributedDataParallel(flow, **options)

    def follow(self, averaged: TarFlow) -> None:
        """Move the averaged flow to where the trained one is, and split it in the same way."""
        if self.shards:
            self._split(averaged)
        else:
            averaged.to(self.device)

    def _split(self, flow: TarFlow) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        shard(flow, init_device_mesh(self.device.type, (self.ranks.size,)))

    def __call__(self, *args: Any) -> Any:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.products == "bf16"):
            return self.model(*args)

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Within it gradients are added up; with the `last` micro-batch of a step they become those of all ranks.

        Under FSDP2 that happens with each: keeping a whole gradient until the last one would take the memory that both
        the sharding and the micro-batches are there to save.
        """
        if last or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()


def check_device(config: TrainingConfig, ranks: Ranks, device: torch.device) -> None:
    """Raise the ConfigError that `Engine` would, before anything is read and before any rank waits for another.

    The ranks need equal shares of each micro-batch: `batch_size` is that of all of them.
    """
    products_of(config, device)
    parts = ranks.size * config.accumulate
    if config.batch_size % parts:
        raise ConfigError(
            f"training.batch_size: expected a multiple of {parts} ({ranks.size} processes, accumulate "
            f"{config.accumulate}), got {config.batch_size}"
        )
    if not ranks.alone:
        _device_of_rank(ranks, device)


def _device_of_rank(ranks: Ranks, device: torch.device) -> torch.device:
    """The device of this rank; ConfigError where there is none."""
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: {ranks.size} processes need cpu or cuda, got {device.type}")
    if ranks.size % ranks.local_size:
        raise ConfigError(
            f"torchrun: expected as many processes on each node, got {ranks.local_size} here of {ranks.size}"
        )
    if device.type == "cpu":
        return device
    if ranks.local_size > torch.cuda.device_count():
        raise ConfigError(f"torchrun: {ranks.local_size} processes on a node with {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", ranks.local_rank)


def _leave() -> None:
    """Leave the process group; NCCL warns of a process that ends without."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
