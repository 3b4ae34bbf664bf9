"""The plan of a run: its size, arithmetic, memory and time, and what to do where it does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tarflow.config import ConfigError, Recompute, RunConfig, TarFlowConfig, TrainingConfig
from tarflow.devices import KEPT_SHARE
from tarflow.planning.devices import Device
from tarflow.planning.memory import FLOAT, Memory, Strategy, training_memory
from tarflow.planning.work import forward_flops, muon_flops, parameters, recomputed_flops, training_flops
from tarflow.training.engine import Products, products_of

FITS = 0.9  # of a device's memory: the rest goes to the context, the libraries, and to what lies between the tensors
UPDATE_BYTES = 13 * FLOAT  # a weight, a step: clipping reads and scales, AdamW reads 4 and writes 3, averaging moves 3
RECOMPUTE: tuple[Recompute, ...] = ("nothing", "elementwise", "layers")  # from the fastest to the smallest


@dataclass(frozen=True)
class Plan:
    """What a run comes to.

    Attributes:
        model, training: the run. images: that are trained on, None where only steps are known.
        device, devices, strategy: where it runs. products: their precision.
        steps: in all. parameters: numbers that are trained.
        forward_flops: of one image. step_flops: of a step, over all devices. recomputed_flops: what it computes twice.
        memory: of each device.
        compute_seconds, update_seconds, exchange_seconds: of a step, on each device: products; weights, moments and
            averages in and out of memory; gradients between the devices, which hide behind the products as far as they
            are shorter.
        fits: whether the memory is there. advice: what would make it fit, or what would be better.
    """

    model: TarFlowConfig
    training: TrainingConfig
    images: int | None
    device: Device
    devices: int
    strategy: Strategy
    products: Products
    steps: int
    parameters: int
    forward_flops: int
    step_flops: int
    recomputed_flops: int
    memory: Memory
    compute_seconds: float
    update_seconds: float
    exchange_seconds: float
    fits: bool
    advice: list[str] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return max(self.compute_seconds, self.exchange_seconds) + self.update_seconds

    @property
    def hours(self) -> float:
        """Of all steps; held-out scores, samples and checkpoints come on top."""
        return self.steps * self.step_seconds / 3600

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it: bytes, seconds, FLOP."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {name: dataclasses.asdict(values[name]) for name in ("model", "training", "device", "memory")}
        values["memory"]["peak"] = self.memory.peak
        return values | {
            "run_flops": self.steps * self.step_flops,
            "step_seconds": self.step_seconds,
            "hours": self.hours,
        }


def make_plan(
    config: RunConfig,
    device: Device,
    *,
    devices: int = 1,
    strategy: Strategy = "ddp",
    images: int | None = None,
    share: float | None = None,
) -> Plan:
    """Plan a run.

        step = max(FLOP / devices / (rate · share), exchange) + update

    with the FLOP of `work`, recomputation among them; exchange, the gradients' way around the ring (and with FSDP that
    of the weights, twice) over the link; and update, what the optimizer moves over the bandwidth of the memory, and
    with Muon its products.

    Args:
        config: with its section `training`. images: trained on; needed where the length is given in epochs.
        share: in place of the device's own.

    Raises:
        ConfigError: a batch that the devices cannot share, no number of images, a share that is none.
    """
    model, training = config.model, config.training
    if training is None:
        raise ConfigError("training: missing")
    share = device.share if share is None else share
    if not 0 < share <= 1:
        raise ConfigError(f"share: expected more than 0 and at most 1, got {share:g}")
    _check_devices(training, device, devices)
    steps = _steps(training, images)
    products = products_of(training, torch.device("cpu" if device.name == "cpu" else "cuda"))
    muon = training.optimizer == "muon"
    if muon and strategy == "fsdp":
        raise ConfigError("strategy: expected ddp with optimizer muon, which needs whole matrices, got fsdp")
    memory = _memory(config, device, devices, strategy, images, products)
    numbers = parameters(model)
    useful = training_flops(model, training.batch_size)
    again = recomputed_flops(model, training.batch_size, training.checkpoint_activations)
    kept = numbers / devices if strategy == "fsdp" else numbers
    rate = getattr(device, products)
    passes = 3 if strategy == "fsdp" else 2  # ring all-reduce: out and back; FSDP gathers twice and scatters once
    # Every device turns all matrices, in bf16 on a GPU and in float32 on a CPU.
    turning = muon_flops(model) / ((device.float32 if device.name == "cpu" else device.bf16) * share) if muon else 0.0
    exchanged = passes * FLOAT * numbers * (devices - 1) / devices
    plan = Plan(
        model,
        training,
        images,
        device,
        devices,
        strategy,
        products,
        steps,
        numbers,
        forward_flops(model),
        useful,
        again,
        memory,
        compute_seconds=(useful + again) / devices / (rate * share),
        update_seconds=UPDATE_BYTES * kept / device.bandwidth + turning,
        exchange_seconds=exchanged / device.link if devices > 1 else 0.0,
        fits=memory.peak <= FITS * device.memory,
    )
    return dataclasses.replace(plan, advice=_advice(config, plan))


def _check_devices(training: TrainingConfig, device: Device, devices: int) -> None:
    if devices < 1:
        raise ConfigError(f"devices: expected a positive number, got {devices}")
    if devices > 1 and not device.link:
        raise ConfigError(
            f"devices: expected 1 with {device.name}, whose processes would share one machine, got {devices}"
        )
    if training.batch_size % (devices * training.accumulate):
        raise ConfigError(
            f"batch_size: expected a multiple of devices times accumulate, {devices} x {training.accumulate}, "
            f"got {training.batch_size}"
        )


def _steps(training: TrainingConfig, images: int | None) -> int:
    if training.steps is not None:
        return training.steps
    if training.epochs is None:
        raise ConfigError("training.steps: missing; give steps or epochs")
    if images is None:
        raise ConfigError("images: the recipe counts in epochs; give the number of training images, or their data")
    if images < 1:
        raise ConfigError(f"images: expected a positive number, got {images}")
    return training.step_counts(images)[0]


def _memory(
    config: RunConfig, device: Device, devices: int, strategy: Strategy, images: int | None, products: Products
) -> Memory:
    model, training = config.model, config.training
    assert training is not None
    stored = 0 if images is None else images * model.num_dims
    if device.name != "cpu" and stored > KEPT_SHARE * device.memory:  # then they stay on the host
        stored = 0
    return training_memory(
        model,
        images=training.batch_size // (devices * training.accumulate),
        micro_batches=training.accumulate,
        recompute=training.checkpoint_activations,
        bf16=products == "bf16",
        compiled=training.compile == "on" or (training.compile == "auto" and device.name != "cpu"),
        on_cpu=device.name == "cpu",
        devices=devices,
        strategy=strategy,
        muon=training.optimizer == "muon",
        stored=stored,
    )


def _advice(config: RunConfig, plan: Plan) -> list[str]:
    """Where it does not fit: the changes that would make it fit, the cheapest first, each tried."""
    if plan.fits:
        return []
    training, room = plan.training, FITS * plan.device.memory
    found = []

    def fitting(name: str, changed: RunConfig, strategy: Strategy = plan.strategy, devices: int = plan.devices) -> bool:
        peak = _memory(changed, plan.device, devices, strategy, plan.images, plan.products).peak
        if peak <= room:
            found.append(f"{name}: {peak / 1e9:.1f} GB")
        return peak <= room

    def but(**fields: Any) -> RunConfig:
        return dataclasses.replace(config, training=dataclasses.replace(training, **fields))

    here = training.batch_size // plan.devices
    for parts in (k for k in range(training.accumulate + 1, here + 1) if here % k == 0):
        if fitting(f"--accumulate {parts}", but(accumulate=parts)):
            break
    for recompute in RECOMPUTE[RECOMPUTE.index(training.checkpoint_activations) + 1 :]:
        if fitting(f"--checkpoint-activations {recompute}", but(checkpoint_activations=recompute)):
            break
    if plan.devices > 1 and plan.strategy == "ddp":
        fitting(f"FSDP over the {plan.devices} devices", config, "fsdp")
    if not found:
        _together(config, plan, fitting)
    return found or ["nothing that a plan may change makes it fit: take a smaller model, or a device with more memory"]


def _together(config: RunConfig, plan: Plan, fitting: Callable[..., bool]) -> None:
    """Several changes at once, from what costs the least: micro-batches, then layers computed again, then devices."""
    training = plan.training
    recomputes = sorted({training.checkpoint_activations, "layers"}, key=RECOMPUTE.index)
    for devices in (plan.devices * 2**k for k in range(11)):
        if training.batch_size % devices or (devices > 1 and not plan.device.link):
            return
        strategy: Strategy = "fsdp" if devices > 1 else "ddp"
        for recompute in recomputes:
            here = training.batch_size // devices
            for parts in (k for k in range(1, here + 1) if here % k == 0):
                moved = dataclasses.replace(training, accumulate=parts, checkpoint_activations=recompute)
                name = f"--accumulate {parts}, --checkpoint-activations {recompute}"
                name += f", FSDP over {devices} devices" if devices > 1 else ""
                if fitting(name, dataclasses.replace(config, training=moved), strategy, devices):
                    return
