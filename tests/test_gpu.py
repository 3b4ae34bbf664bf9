"""What only a GPU can show: the same numbers as on a CPU, graphs that replay, memory as planned. `make gpu` runs these.

With TARFLOW_TEST_DEVICE=cpu they run on a CPU, but for those that ask CUDA itself, so that they cannot rot.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tarflow
from flow_cases import build, labels, latents, names, randomise
from tarflow import Guidance, TarFlow, TarFlowConfig
from tarflow.config import TrainingConfig
from tarflow.data.feed import Feed
from tarflow.data.images import from_array
from tarflow.data.load import load
from tarflow.data.options import LoadOptions
from tarflow.data.store.write import prepare
from tarflow.devices import numbered
from tarflow.evaluation.likelihood.scores import log_likelihood
from tarflow.model.condition import Classes
from tarflow.planning.memory import training_memory
from tarflow.sampling.cuda import step as device_step
from tarflow.sampling.cuda.graph import Captured
from tarflow.training import build as build_module
from tarflow.training.engine import Engine
from tarflow.training.layers import recompute_layers
from tarflow.training.step import objective, training_batch
from tarflow.training.trainer import train
from training_cases import images as image_set
from training_cases import run_config, splits

KIND = os.environ.get("TARFLOW_TEST_DEVICE", "cuda")
HERE = KIND != "cuda" or torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HERE, reason="no CUDA device; TARFLOW_TEST_DEVICE=cpu runs these on a CPU"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what torch's compiler imports of torch
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:Online softmax is disabled:UserWarning"),
]
needs_cuda = pytest.mark.skipif(KIND != "cuda", reason="asks CUDA itself")
DEVICE = numbered(KIND) if HERE else torch.device("cpu")

# 257 patches: more than 128, and divisible by nothing that a kernel could want.
MODEL = TarFlowConfig(
    image_size=(1, 257), channels=3, patch_size=1, width=128, layers=(2, 2), num_classes=5, log_scale_bound=2.0
)


def tame(config: TarFlowConfig = MODEL) -> TarFlow:
    """A float32 flow on the CPU whose samples stay within a few units."""
    flow = randomise(TarFlow(config)).eval().requires_grad_(False)
    for block in flow.blocks:
        block.proj_out.weight.mul_(0.1)
        block.proj_out.bias.mul_(0.1)
    return flow


def both(flow: TarFlow) -> tuple[TarFlow, TarFlow]:
    """The same on the CPU in float64, and on the device as it is."""
    return copy.deepcopy(flow).double(), copy.deepcopy(flow).to(DEVICE)


def inputs(count: int, config: TarFlowConfig = MODEL) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.rand(count, config.channels, *config.image_shape, generator=generator, dtype=torch.float32) * 2 - 1
    y = torch.arange(count) % config.num_classes
    y[1:2] = tarflow.NULL_CLASS
    return x, y


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.cpu().double(), want.cpu().double(), atol=tolerance, rtol=tolerance)


# --- densities -------------------------------------------------------------------------------------------------------


def test_densities_scores_and_denoising_are_the_cpus() -> None:
    exact, flow = both(tame())
    x, y = inputs(5)
    close(flow.log_prob(x.to(DEVICE), y), exact.log_prob(x.double(), y), 2e-4)
    close(
        log_likelihood(flow, x, labels="marginal"),
        log_likelihood(exact, x.double(), labels="marginal"),
        2e-4,
    )
    close(tarflow.denoise(flow, x.to(DEVICE), 0.1, y), tarflow.denoise(exact, x.double(), 0.1, y), 2e-4)
    assert flow.log_prob(x.to(DEVICE), y).device == DEVICE


@pytest.mark.parametrize("products", ["float32", "tf32", "bf16"])
def test_the_precision_of_products_costs_what_is_documented(products: Any) -> None:
    """bits/dim against float64, of a flow whose density is not that of its noise: 0.003 at most in bf16."""
    if products == "tf32" and DEVICE.type != "cuda":
        pytest.skip("tf32 is a format of CUDA devices")
    exact, flow = both(tame())
    x, y = inputs(16)
    engine = Engine(TrainingConfig(steps=1, precision=products), DEVICE)
    engine.set_up(flow)
    with torch.no_grad(), engine.precision():
        z, ladj = engine(x.to(DEVICE), y.to(DEVICE))
        got = (flow.base.log_prob(z) + ladj).sum(dim=1)
    assert z.dtype == ladj.dtype == torch.float32
    error = (got.cpu().double() - exact.log_prob(x.double(), y)).abs() / (MODEL.num_dims * 0.6931)
    assert float(error.square().mean().sqrt()) < {"float32": 1e-5, "tf32": 1e-3, "bf16": 3e-3}[products]


# --- samples ---------------------------------------------------------------------------------------------------------

GUIDANCES = [None, Guidance(1.0), Guidance(0.7, "constant", 0.5, "stable")]


@pytest.mark.parametrize("solver", ["sequential", "jacobi", "auto"])
@pytest.mark.parametrize("guidance", GUIDANCES, ids=["none", "paper", "stable"])
def test_samples_are_the_cpus(solver: Any, guidance: Guidance | None) -> None:
    exact, flow = both(tame())
    y = torch.arange(5)
    noise = torch.randn(5, MODEL.num_patches, MODEL.patch_dim, generator=torch.Generator("cpu").manual_seed(1))
    options: dict[str, Any] = {"noise": noise, "denoise": 0.1}
    # Two batches, the second of which is smaller, and all that is captured is used again.
    got = tarflow.sample(flow, 5, y, guidance, solver=solver, batch_size=3, **options)
    want = tarflow.sample(exact, 5, y, guidance, solver="sequential", **options)
    close(got, want, 5e-3)
    assert got.device == DEVICE


@pytest.mark.parametrize("rotary", [False, True])
def test_editing_inverts_on_the_device(rotary: bool) -> None:
    flow = tame(dataclasses.replace(MODEL, rotary=rotary)).to(DEVICE)
    x, y = inputs(3)
    back, error = tarflow.reconstruct(flow, x.to(DEVICE), y)
    assert float(error.max()) < 1e-3 and back.device == DEVICE


def test_narrow_weights_are_sampled_by_every_solver() -> None:
    flow = tarflow.narrowed(tame()).to(DEVICE)
    noise = torch.randn(4, MODEL.num_patches, MODEL.patch_dim, generator=torch.Generator("cpu").manual_seed(1))
    found = {s: tarflow.sample(flow, 4, torch.arange(4), noise=noise, solver=s) for s in ("sequential", "jacobi")}
    want = tarflow.sample(tame().double(), 4, torch.arange(4), noise=noise, solver="sequential")
    for got in found.values():
        assert got.dtype == torch.float32
        assert float((got.cpu() - want).square().mean().sqrt()) < 0.1


@needs_cuda
def test_captures_share_a_pool_and_are_freed_with_their_call() -> None:
    flow = tame().to(DEVICE)
    y, z = torch.arange(3, device=DEVICE), torch.randn(3, MODEL.num_patches, MODEL.patch_dim, device=DEVICE)
    Captured().solve(flow.blocks[0], z, y, None)  # what libraries keep for good, they have now
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    captured = Captured()
    first = [captured.solve(block, z, y, Guidance(1.0)).x for block in flow.blocks]
    again = [captured.solve(block, z, y, Guidance(1.0)).x for block in flow.blocks]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b), "a replay is not what was captured"
    held = torch.cuda.memory_allocated() - before
    del captured, first, again, a, b
    gc.collect()
    assert torch.cuda.memory_allocated() - before < held / 4
    tarflow.sample(flow, 2, seed=1, solver="sequential")  # and nothing that was freed is missed


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_flow_on_another_device_than_the_current_one_is_sampled_there() -> None:
    flow = tame().to("cuda:1")
    want = tarflow.sample(tame(), 2, torch.arange(2), solver="sequential")
    close(tarflow.sample(flow, 2, torch.arange(2), solver="sequential"), want, 5e-3)


# --- training --------------------------------------------------------------------------------------------------------


def test_a_step_is_the_cpus() -> None:
    found = []
    for device, dtype in ((torch.device("cpu"), torch.float64), (DEVICE, torch.float32)):
        flow = tame().to(device, dtype).requires_grad_(True).train()
        x, y = inputs(4)
        recompute_layers(flow, "elementwise")
        objective(*flow(x.to(device, dtype), y.to(device))).backward()
        found.append([p.grad for p in flow.parameters()])
    for want, got in zip(*found, strict=True):
        close(got, want, 1e-4)


@pytest.mark.parametrize("compiled", ["off", "auto"])
@pytest.mark.parametrize("noise", ["gaussian", "uniform"])
def test_a_run_trains_evaluates_draws_and_resumes(
    compiled: str, noise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From memory, in the precision that `auto` comes to; what forward is given is not rounded."""
    seen = []
    real = TarFlow.forward

    def forward(self: TarFlow, x: Tensor, *args: Any) -> Any:
        seen.append((x.dtype, x.device.type, torch.equal(x, x.bfloat16().float())))
        return real(self, x, *args)

    monkeypatch.setattr(TarFlow, "forward", forward)
    options = {
        "compile": compiled,
        "noise": noise,
        "steps": 12,
        "evaluate_every": 6,
        "sample_every": 6,
        "save_every": 6,
    }
    result = train(run_config(**options), splits(), tmp_path / "run", device=DEVICE)
    assert result.skipped == 0 and result.best_score < float("inf")
    assert set(seen) == {(torch.float32, DEVICE.type, False)}
    longer = run_config(**options)
    again = train(longer, splits(), tmp_path / "run", device=DEVICE, resume=True)
    assert again.steps == 12
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "images_per_second" in metrics and "held_out" in metrics


@needs_cuda
def test_training_takes_the_memory_that_is_planned() -> None:
    config = TarFlowConfig(image_size=32, patch_size=2, width=512, layers=(4, 4))
    training = TrainingConfig(steps=1, batch_size=64)
    for compiled in ("off", "on"):
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        run = run_config(compile=compiled, batch_size=64)
        engine = Engine(dataclasses.replace(training, compile=compiled), DEVICE)
        step = build_module.build_step(dataclasses.replace(run, model=config), engine, None)
        x = torch.randn(64, 3, 32, 32, device=DEVICE)
        for _ in range(2):
            step(x, None)
        torch.cuda.reset_peak_memory_stats()
        step(x, None)
        peak = torch.cuda.max_memory_allocated() - before
        planned = training_memory(config, images=64, bf16=True, compiled=compiled == "on").peak
        assert 0.8 < peak / planned < 1.2, f"compile {compiled}: {peak / 1e9:.2f} GB, planned {planned / 1e9:.2f} GB"
        del engine, step, x
        gc.collect()


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["memory", "host", "map", "stream"])
def test_a_feed_gives_the_batches_of_the_cpu(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    own = image_set(60, 0)
    for name, image in enumerate(own.images):
        from_array(image.numpy()).save(folder / f"{name:02}.png")
    if way == "host":  # too many for the device
        monkeypatch.setattr("tarflow.data.feed.KEPT_SHARE", 0.0)
    if way == "map":
        prepare(str(folder), tmp_path / "prepared", LoadOptions(channels=1))
        monkeypatch.setattr("tarflow.data.feed.KEPT_SHARE", 0.0)
    source = str(tmp_path / "prepared" if way == "map" else folder)
    data = load(source, channels=1)
    found = []
    for device in ("cpu", DEVICE):
        feed = Feed(data.train, batch_size=16, seed=0, condition="none", device=device)
        try:
            found.append([feed.batch(step)[0] for step in range(6)])
        finally:
            feed.close()
    for want, got in zip(*found, strict=True):
        assert got.device == DEVICE and torch.equal(got.cpu(), want)
    config = TrainingConfig(steps=1, batch_size=16)
    x, _ = training_batch(
        found[1][0], None, 0, config=config, condition=Classes(10), measure=config.measure(256), flip=True
    )
    assert x.device == DEVICE and x.dtype == torch.float32


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("kernels", [True, False])
def test_every_kind_of_flow_is_decoded_by_captured_steps(
    name: str, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Triton, and in torch alone."""
    if not kernels:
        monkeypatch.setattr(device_step, "kernels_for", lambda device, dtype: None)
    flow = build(name, torch.float32).requires_grad_(False)
    for block in flow.blocks:
        block.proj_out.weight.mul_(0.5)
    noise = latents(flow, 3, dtype=torch.float32)
    want = tarflow.sample(flow, 3, labels(flow, 3), noise=noise, solver="sequential")
    found = tarflow.sample(flow.to(DEVICE), 3, labels(flow, 3), noise=noise, solver="sequential", batch_size=2)
    close(found, want, 2e-3)


@needs_cuda
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 16, 33, 64, 128, 200])
@pytest.mark.parametrize("shape", [(768, 2304), (3072, 768), (100, 50)])
def test_thin_products_are_exact_to_float32(rows: int, shape: tuple[int, int], gelu: bool) -> None:
    kernels = device_step.kernels_for(DEVICE, torch.float32)
    assert kernels is not None
    linear, x = torch.nn.Linear(*shape).to(DEVICE), torch.randn(rows, shape[0], device=DEVICE)
    with torch.no_grad():
        got = kernels.product(x, linear, gelu=gelu)
        want = linear.double()(x.double())
        want = torch.nn.functional.gelu(want) if gelu else want
    close(got, want, 1e-5)


@needs_cuda
def test_a_step_reads_nothing_behind_its_place() -> None:
    """The cache of a later batch holds the patches of the one before."""
    flow = tame().to(DEVICE)
    y, z = torch.arange(3, device=DEVICE), torch.randn(3, MODEL.num_patches, MODEL.patch_dim, device=DEVICE)
    captured = Captured()
    want = captured.solve(flow.blocks[0], z, y, None).x
    for store in captured.stores.values():
        store.fill_(float("nan"))
    assert torch.equal(captured.solve(flow.blocks[0], z, y, None).x, want)
