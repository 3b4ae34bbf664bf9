"""The parts of a run that move, made and put in their places: the flow, its average, its optimizer, its step."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from tarflow.config import RunConfig
from tarflow.model.condition import Value
from tarflow.model.flow import TarFlow
from tarflow.training.ema import EMA
from tarflow.training.initial import start_from
from tarflow.training.layers import compile_layers, recompute_layers, wants_compilation
from tarflow.training.optimizer import build_optimizer
from tarflow.training.step import TrainingStep

if TYPE_CHECKING:
    from tarflow.training.engine import Engine


def build_step(config: RunConfig, engine: Engine, init: TarFlow | None, given: Value = None) -> TrainingStep[TarFlow]:
    """The training step of a new run, on the engine's device; all ranks start with the same weights.

    What the training images are `given` is standardised, or goes on being as the weights had it that it starts from.
    """
    training = config.training
    assert training is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        flow = TarFlow(config.model, device="cpu", dtype=torch.float32)
    if init is not None:
        start_from(flow, init)
    elif given is not None:
        flow.conditions.fit(flow.check_condition(given, flow.conditions.count(given) or 0))
    flow.train()
    averaged = copy.deepcopy(flow)  # before it is sharded: then it cannot be copied
    recompute_layers(flow, training.checkpoint_activations)
    engine.set_up(flow)
    engine.follow(averaged)
    optimizer = build_optimizer(flow, training)  # after it: sharding puts other parameters in the place of these
    ema = EMA(flow, training.ema_decay, averaged)
    if wants_compilation(training.compile, engine.device):
        compile_layers(flow)
    return TrainingStep(
        flow,
        optimizer,
        ema,
        config=training,
        forward=engine,
        micro_batch=engine.micro_batch,
        ranks=engine.ranks,
    )
