"""Activations against the tensors that the backward pass really holds on to; the rest against its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor

from tarflow.config import Recompute, TarFlowConfig, TrainingConfig
from tarflow.model.flow import TarFlow
from tarflow.planning.memory import Memory, training_memory
from tarflow.planning.work import parameters
from tarflow.training.ema import EMA
from tarflow.training.layers import compile_layers, recompute_layers
from tarflow.training.optimizer import build_optimizer
from tarflow.training.step import TrainingStep, objective

MODELS: dict[str, dict[str, Any]] = {
    "few patches": {"image_size": 8, "layers": (1, 2), "num_classes": 3},
    "attention in pieces": {"image_size": 24, "layers": (1, 1)},
    "bounded, two heads, thin MLP": {"image_size": 8, "width": 128, "expansion": 1, "log_scale_bound": 4.0},
    "additive": {"image_size": 8, "transform": "additive"},
    "rotary": {"image_size": 8, "rotary": True},
}


def model(**changes: Any) -> TarFlowConfig:
    return TarFlowConfig(**{"patch_size": 2, "width": 64, "layers": (2, 1), **changes})


def saved_bytes(flow: TarFlow, x: Tensor, recompute: Recompute, bf16: bool) -> tuple[int, int]:
    """Bytes of the storages that the graph of a loss holds: activations, and narrow copies of matrices."""
    owned = {p.untyped_storage().data_ptr() for p in flow.parameters()}
    shapes = {tuple(p.shape) for p in flow.parameters()} | {tuple(p.T.shape) for p in flow.parameters() if p.ndim == 2}
    held: dict[int, Tensor] = {}  # keeps them alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in owned:
            held.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            recompute_layers(flow, recompute)
            z, ladj = flow(x, None)
        objective(z, ladj)
    copies = {a: t for a, t in held.items() if t.dtype == torch.bfloat16 and tuple(t.shape) in shapes}
    sizes = {address: tensor.untyped_storage().nbytes() for address, tensor in held.items()}
    narrow = sum(sizes[address] for address in copies)
    return sum(sizes.values()) - narrow, narrow


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_activations_are_what_the_graph_holds(
    changes: dict[str, Any], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tarflow.training.layers", "tarflow.planning.memory"):
        monkeypatch.setattr(f"{module}.LEAST_NUMBERS", 1 << 16)
    config = model(**changes)
    images = -(-(1 << 16) // ((config.num_patches - 1) * config.width))  # enough to compute norms and GELUs again
    flow, x = TarFlow(config), torch.randn(images, config.channels, *config.image_shape)
    found = []
    for recompute in ("nothing", "elementwise", "layers"):
        activations, copies = saved_bytes(flow, x, recompute, bf16)
        planned = training_memory(config, images=images, recompute=recompute, bf16=bf16, on_cpu=True)
        assert planned.activations == pytest.approx(activations, rel=0.005)  # without the masks of attention
        if bf16 and recompute == "nothing":
            # All narrow products keep their matrix but the first, whose patches want no gradient: its copy is in
            # autocast's cache alone, as all copies are until the forward pass is through.
            first = 2 * config.patch_dim * config.width
            assert planned.weights == 4 * parameters(config) + copies + first
        found.append(planned.activations)
    assert found[0] > 1.2 * found[1] > 1.2 * found[2]


def inductor_without_code() -> Callable[..., Any]:
    """A compiler that decides what to keep as inductor does, and runs the two passes operation by operation."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def run(graph: Any, inputs: Any) -> Any:
        return make_boxed_func(graph.forward)

    return aot_autograd(
        fw_compiler=run,
        bw_compiler=run,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch's compiler imports of torch
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_compiled_layers_keep_what_is_planned(bf16: bool) -> None:
    """The plan said 24 bytes a token and width where compiled layers kept 34."""
    config = model(image_size=8, width=128, layers=(3,))
    flow, x = TarFlow(config).train(), torch.randn(64, config.channels, *config.image_shape)
    torch._dynamo.reset()
    try:
        compile_layers(flow, inductor_without_code())
        held = saved_bytes(flow, x, "elementwise", bf16)[0]
    finally:
        torch._dynamo.reset()
    planned = training_memory(config, images=64, bf16=bf16, compiled=True)
    assert planned.activations == pytest.approx(held, rel=0.05)
    assert planned.activations < training_memory(config, images=64, bf16=bf16, recompute="nothing").activations / 1.2


def test_small_batches_keep_everything() -> None:
    """As `Layer` decides: below its limit, "elementwise" is "nothing"."""
    config = model(image_size=8)
    flow, x = TarFlow(config), torch.randn(4, 3, 8, 8)
    sizes = [saved_bytes(flow, x, recompute, False)[0] for recompute in ("nothing", "elementwise")]
    planned = training_memory(config, images=4, recompute="elementwise", on_cpu=True)
    assert sizes[0] == sizes[1] == pytest.approx(planned.activations, rel=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_and_their_companions_are_those_of_a_trained_flow(optimizer: Literal["adamw", "muon"]) -> None:
    config, training = model(image_size=8), TrainingConfig(steps=1, batch_size=2, optimizer=optimizer)
    flow = TarFlow(config)
    built, ema = build_optimizer(flow, training), EMA(flow, 0.0)
    TrainingStep(flow, built, ema, config=training)(torch.randn(2, 3, 8, 8), None)
    moments = [t for state in built.state.values() for t in state.values() if t.ndim]
    planned = training_memory(config, images=2, muon=optimizer == "muon")
    assert planned.weights == sum(p.nbytes for p in flow.parameters())
    assert planned.gradients == sum(p.grad.nbytes for p in flow.parameters() if p.grad is not None)
    assert planned.moments == sum(t.nbytes for t in moments)
    assert planned.averaged == sum(t.nbytes for t in ema.flow.state_dict().values())


def test_devices_share_what_their_strategy_shares() -> None:
    config = model(image_size=8)
    alone = training_memory(config, images=4)
    ddp = training_memory(config, images=4, devices=4, strategy="ddp")
    fsdp = training_memory(config, images=4, devices=4, strategy="fsdp")
    assert (ddp.weights, ddp.moments, ddp.averaged) == (alone.weights, alone.moments, alone.averaged)
    assert ddp.gradients == 2 * alone.gradients  # and the buckets
    for name in ("weights", "gradients", "moments", "averaged"):
        assert getattr(fsdp, name) == pytest.approx(getattr(alone, name) / 4, rel=1e-4)
    assert fsdp.activations == ddp.activations == alone.activations
    assert fsdp.working > ddp.working == alone.working  # the layers that are together
    assert training_memory(config, images=4, devices=1, strategy="fsdp") == alone


def test_the_peak_is_the_larger_of_activations_and_gradients_or_their_sum() -> None:
    memory = Memory(
        weights=1, gradients=10, moments=2, averaged=3, activations=20, working=5, images=100, micro_batches=1
    )
    assert memory.peak == 106 + 25
    several = Memory(**{**vars(memory), "micro_batches": 2})
    assert several.peak == 106 + 25 + 10
    assert Memory(**{**vars(memory), "gradients": 40}).peak == 106 + 40
