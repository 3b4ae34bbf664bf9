"""Denoising: Tweedie's formula, against the posterior mean of a Gaussian in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tarflow
import tarflow.sampling.denoise as denoise_module
from flow_cases import assert_close, build, every_kind, images, labels, row_of, unchanged
from tarflow import TarFlow, TarFlowConfig
from tarflow.model.events import unpatchify
from tarflow.sampling.denoise import graph_bytes

SIGMA = 0.3


def gaussian_flow(transform: str) -> tuple[TarFlow, Tensor, Tensor]:
    """A flow that is N(mean, variance), and these two, (1, C, H, W): output layers of zero weight, random biases."""
    config = TarFlowConfig(4, 2, 16, (1, 1, 1), channels=2, head_dim=8, log_scale_bound=None, transform=transform)  # type: ignore[arg-type]
    flow = TarFlow(config).double()
    generator = torch.Generator().manual_seed(3)
    length, dim = config.num_patches, config.patch_dim
    mean, std = torch.zeros(length, dim).double(), torch.ones(length, dim).double()
    if flow.base.follows:
        flow.base.variance.copy_(0.5 + torch.rand(length, dim, generator=generator).double())
        std = flow.base.variance.sqrt()
    for index, block in reversed(list(enumerate(flow.blocks))):
        bias = 0.3 * torch.randn(block.proj_out.bias.shape, generator=generator).double()
        block.proj_out.bias.data.copy_(bias)
        shift, log_scale = (bias[dim:], bias[:dim]) if transform == "affine" else (bias, torch.zeros(dim).double())
        moved = slice(0, length - 1) if index % 2 else slice(1, length)  # all but the first of the block's own order
        mean[moved] = mean[moved] * log_scale.exp() + shift
        std[moved] = std[moved] * log_scale.exp()
    return flow, *(unpatchify(v[None], 2, (4, 4)) for v in (mean, std.square()))


@pytest.mark.parametrize("transform", ["affine", "additive"])
def test_the_density_of_a_gaussian_flow_is_that_gaussian(transform: str) -> None:
    """Else the closed form below would be that of something else."""
    flow, mean, variance = gaussian_flow(transform)
    assert variance.std() > 0.05 and mean.std() > 0.05
    x = images(flow, 5)
    want = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x).sum(dim=(1, 2, 3))
    assert_close(flow.log_prob(x), want)


@pytest.mark.parametrize("transform", ["affine", "additive"])
@pytest.mark.parametrize("sigma", [0.05, 0.3])
def test_denoising_a_gaussian_is_its_posterior_mean(transform: str, sigma: float) -> None:
    """x = clean + σε with clean ~ N(m, s²-σ²): E[clean|x] = m + (s²-σ²)/s² (x-m)."""
    flow, mean, variance = gaussian_flow(transform)
    x = images(flow, 5)
    want = mean + (variance - sigma**2) / variance * (x - mean)
    assert_close(tarflow.denoise(flow, x, sigma), want)


@every_kind
def test_denoising_is_one_step_along_the_score(name: str) -> None:
    """The score by finite differences of the summed log-density, in nats."""
    flow, step = build(name), 1e-5
    x, y = images(flow, 2), labels(flow, 2)
    with unchanged(x, y):
        moved = tarflow.denoise(flow, x, SIGMA, y) - x
    with torch.no_grad():
        for direction in images(flow, 2, seed=5):
            slope = (flow.log_prob(x + step * direction, y) - flow.log_prob(x - step * direction, y)) / (2 * step)
            assert_close((moved * direction).flatten(1).sum(dim=1), SIGMA**2 * slope, 1e-6)


@every_kind
def test_chunks_and_single_images_are_the_whole(name: str) -> None:
    flow = build(name)
    x, y = images(flow, 5), labels(flow, 5)
    whole = tarflow.denoise(flow, x, SIGMA, y)
    for batch_size in (1, 2, 5, 100):
        assert_close(tarflow.denoise(flow, x, SIGMA, y, batch_size=batch_size), whole)
    for i in range(5):
        row_y = row_of(y, i)
        assert_close(tarflow.denoise(flow, x[i : i + 1], SIGMA, row_y), whole[i : i + 1])


@every_kind
def test_block_by_block_is_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one image's activations are more than may be kept."""
    flow = build(name)
    x, y = images(flow, 5), labels(flow, 5)
    whole = tarflow.denoise(flow, x, SIGMA, y)
    monkeypatch.setattr(denoise_module, "GRAPH_BYTES", denoise_module.graph_bytes(flow) - 1)
    monkeypatch.setattr(denoise_module, "_score", None)
    with unchanged(x, y):
        assert_close(tarflow.denoise(flow, x, SIGMA, y), whole)
    assert all(p.grad is None for p in flow.parameters())


def saved_bytes(flow: tarflow.TarFlow, count: int) -> int:
    """The most that autograd keeps at once while `count` images are denoised, weights left out."""
    held: dict[int, int] = {}
    kept, most = 0, 0
    weights = {p.untyped_storage().data_ptr() for p in flow.parameters()}

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal kept, most
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            if self.key not in weights:
                if not held.get(self.key):
                    kept += tensor.untyped_storage().nbytes()
                held[self.key] = held.get(self.key, 0) + 1
                most = max(most, kept)

        def __del__(self) -> None:
            nonlocal kept
            if self.key not in weights:
                held[self.key] -= 1
                kept -= self.tensor.untyped_storage().nbytes() if not held[self.key] else 0

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda box: box.tensor):
        tarflow.denoise(flow, images(flow, count, dtype=torch.float32), SIGMA)
    return most


def test_memory_is_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = tarflow.TarFlow(tarflow.TarFlowConfig(16, channels=1, patch_size=2, width=64, layers=(2,) * 4))
    one = denoise_module.graph_bytes(flow)
    assert 0.6 * one < saved_bytes(flow, 1) < 1.3 * one
    unbounded = saved_bytes(flow, 12)
    assert unbounded > 7 * one
    monkeypatch.setattr(denoise_module, "GRAPH_BYTES", 4 * one)  # four at a time
    assert saved_bytes(flow, 12) < 5 * one
    monkeypatch.setattr(denoise_module, "GRAPH_BYTES", one // 2)  # two, one block of them at a time
    assert saved_bytes(flow, 12) < 0.7 * one


def test_more_images_than_fit_a_default_chunk_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional")
    monkeypatch.setattr(denoise_module, "GRAPH_BYTES", 30 * denoise_module.graph_bytes(flow))
    x, y = images(flow, 70), labels(flow, 70)
    assert_close(tarflow.denoise(flow, x, SIGMA, y)[60:], tarflow.denoise(flow, x[60:], SIGMA, y[60:]))
    assert tarflow.denoise(flow, x[:0], SIGMA).shape == (0, 1, 4, 4)


def test_labels_matter_and_none_is_the_null_class() -> None:
    flow = build("conditional")
    x = images(flow, 3)
    results = [tarflow.denoise(flow, x, SIGMA, torch.full((3,), label)) for label in (-1, 0, 1, 2)]
    assert torch.equal(tarflow.denoise(flow, x, SIGMA), results[0])
    for i in range(4):
        for j in range(i):
            assert not torch.allclose(results[i], results[j], atol=1e-4)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode: type) -> None:
    flow = build("conditional")
    x, y = images(flow, 3), labels(flow, 3)
    want = tarflow.denoise(flow, x, SIGMA, y)
    with mode():
        assert_close(tarflow.denoise(flow, x, SIGMA, y), want)
        x, y = images(flow, 3) * 1, labels(flow, 3) + 0  # tensors that were made there
        assert_close(tarflow.denoise(flow, x, SIGMA, y, batch_size=2), want)
    flow.requires_grad_(False)
    assert_close(tarflow.denoise(flow, x, SIGMA, y), want)


@pytest.mark.parametrize("frozen", [False, True])
def test_no_gradient_is_left_anywhere(frozen: bool) -> None:
    flow = build("conditional").requires_grad_(not frozen)
    x, y = images(flow, 3).requires_grad_(), labels(flow, 3)
    result = tarflow.denoise(flow, x, SIGMA, y)
    assert not result.requires_grad and x.grad is None and x.requires_grad
    assert all(p.grad is None and p.requires_grad != frozen for p in flow.parameters())
    assert torch.is_grad_enabled()
    for parameter in flow.parameters():
        parameter.grad = torch.ones_like(parameter)
    tarflow.denoise(flow, x, SIGMA, y)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in flow.parameters())


def test_autocast_does_not_reach_the_score() -> None:
    flow = build("conditional", torch.float32)
    x, y = images(flow, 3, dtype=torch.float32), labels(flow, 3)
    want = tarflow.denoise(flow, x, SIGMA, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tarflow.denoise(flow, x, SIGMA, y), want)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("data", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_result_is_float32_at_least(weights: torch.dtype, data: torch.dtype) -> None:
    """As the state and the score are: σ²·score is smaller than what bfloat16 resolves beside x."""
    flow = build("conditional", weights)
    x, y = images(flow, 3, dtype=data), labels(flow, 3)
    wide = torch.promote_types(torch.promote_types(weights, data), torch.float32)
    result = tarflow.denoise(flow, x, 0.05, y)
    assert_close(result.to(wide), tarflow.denoise(flow, x.to(wide), 0.05, y), 1e-6)
    assert result.dtype == wide


@pytest.mark.parametrize("sigma", [0.0, -0.1, math.nan, math.inf])
def test_sigma_that_is_not_positive_is_refused(sigma: float) -> None:
    flow = build("conditional")
    with pytest.raises(ValueError, match=r"sigma: expected .*, got"):
        tarflow.denoise(flow, images(flow, 2), sigma)
    with pytest.raises(ValueError, match=r"sigma: expected .*, got"):
        tarflow.sample(flow, 2, denoise=sigma)


def test_input_that_does_not_fit_is_refused() -> None:
    flow = build("conditional")
    x = images(flow, 2)
    with pytest.raises(ValueError, match=r"^x: expected"):
        tarflow.denoise(flow, x[0], SIGMA)
    with pytest.raises(ValueError, match=r"^x: .*uint8"):
        tarflow.denoise(flow, x.to(torch.uint8), SIGMA)
    with pytest.raises(ValueError, match=r"^y: .*got 3"):
        tarflow.denoise(flow, x, SIGMA, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="batch_size"):
        tarflow.denoise(flow, x, SIGMA, batch_size=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_wider_weights_leave_room_for_fewer_images(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("unconditional", dtype)
    assert graph_bytes(flow) == graph_bytes(build("unconditional", torch.float32)) * dtype.itemsize // 4
    seen: list[int] = []
    real = denoise_module._denoise_chunk

    def noted(flow: TarFlow, x: Tensor, *rest: Any) -> Tensor:
        seen.append(len(x))
        return real(flow, x, *rest)

    monkeypatch.setattr(denoise_module, "GRAPH_BYTES", 4 * graph_bytes(build("unconditional", torch.float64)))
    monkeypatch.setattr(denoise_module, "_denoise_chunk", noted)
    denoise_module.denoise(flow, images(flow, 40, dtype=torch.float32), 0.1)
    assert max(seen) == 32 // dtype.itemsize
