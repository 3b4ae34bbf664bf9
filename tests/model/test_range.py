"""A finite x never has NaN for a density: what leaves the range of the network has a density of 0, and no gradient."""

from __future__ import annotations

import math

import pytest
import torch

import tarflow
from flow_cases import build, images, labels
from tarflow import TarFlow, TarFlowConfig
from tarflow.evaluation.likelihood.patch_maps import patch_log_prob
from tarflow.interop import load_official, to_official
from tarflow.sampling import denoise as room

SCALES = (1.0, 30.0, 1e4, 1e10, 1e19, 1e30, 1e38)
CASES = ("conditional", "bounded_conditional", "additive", "rotary", "one_pixel_patches")


def wild(name: str, dtype: torch.dtype) -> TarFlow:
    """A flow whose log-scales are large where the table's are about 0.5."""
    flow = build(name, dtype)
    with torch.no_grad():
        for block in flow.blocks:
            block.proj_out.weight *= 20
    return flow


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_a_finite_image_has_a_density_and_gradients_that_are_numbers(name: str, dtype: torch.dtype) -> None:
    flow = wild(name, dtype)
    for scale in SCALES:
        x = (images(flow, 4) * scale).clamp(-3.3e38, 3.3e38).to(torch.promote_types(dtype, torch.float32))
        x = x.requires_grad_()
        flow.zero_grad()
        log_prob = flow.log_prob(x, labels(flow, 4))
        assert not log_prob.isnan().any() and not (log_prob == math.inf).any(), scale
        log_prob.sum().backward()
        assert x.grad is not None and x.grad.isfinite().all(), scale
        assert (x.grad[log_prob == -math.inf] == 0).all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in flow.parameters()), scale


@pytest.mark.parametrize("name", CASES)
def test_one_image_out_of_range_changes_nothing_for_the_others(name: str) -> None:
    flow = wild(name, torch.float64)
    x = 0.1 * images(flow, 4)
    y = labels(flow, 4)
    gradients = []
    for far in (0.1 * images(flow, 4, seed=5)[1], torch.full_like(x[1], 1e300)):
        flow.zero_grad()
        x = x.detach().clone()
        x[1] = far
        x.requires_grad_()
        log_prob = flow.log_prob(x, y)
        log_prob[[0, 2, 3]].sum().backward()
        gradients.append([log_prob[[0, 2, 3]].detach(), x.grad[[0, 2, 3]], *(p.grad for p in flow.parameters())])
    assert log_prob[1] == -math.inf
    for got, want in zip(gradients[1], gradients[0], strict=True):
        assert (got is None and want is None) or torch.allclose(got, want, rtol=1e-9, atol=1e-12)


def test_nan_in_is_nan_out_and_in_no_other_row() -> None:
    flow = build("conditional").requires_grad_(False)
    x, y = images(flow, 4), labels(flow, 4)
    right = flow.log_prob(x, y)
    x[1, 0, 3, 3], x[2, 0, 0, 0] = math.nan, math.inf
    found = flow.log_prob(x, y)
    assert found[1].isnan() and found[2] == -math.inf
    assert torch.equal(found[[0, 3]], right[[0, 3]])
    z, ladj = flow.encode(x, y)
    assert z[1].isnan().all() and (z[2] == math.inf).all() and ladj.isfinite().all()
    assert patch_log_prob(flow, x, y)[1].isnan().all() and (patch_log_prob(flow, x, y)[2] == -math.inf).all()


@pytest.mark.parametrize("by_block", [False, True])
def test_the_score_of_an_image_out_of_range_is_zero(by_block: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = wild("conditional", torch.float32)
    if by_block:
        monkeypatch.setattr(room, "GRAPH_BYTES", 1)
    x, y = 0.1 * images(flow, 4, dtype=torch.float32), labels(flow, 4)
    right = tarflow.denoise(flow, x, 0.1, y)
    x[1], x[2] = 1e30, math.nan
    found = tarflow.denoise(flow, x, 0.1, y)
    assert torch.equal(found[1], x[1]) and found[2].isnan().all()
    torch.testing.assert_close(found[[0, 3]], right[[0, 3]])


def test_new_models_are_bounded_and_official_ones_are_not() -> None:
    shape = dict(image_size=8, patch_size=2, width=64, layers=(1, 1))
    assert TarFlowConfig(**shape).log_scale_bound == 4.0
    assert TarFlowConfig(**shape, log_scale_bound="auto").log_scale_bound == 4.0
    assert TarFlowConfig(**shape, log_scale_bound="none").log_scale_bound is None
    assert TarFlowConfig(**shape, transform="additive").log_scale_bound is None
    official = TarFlow(TarFlowConfig(**shape, log_scale_bound=None))
    assert load_official(to_official(official)).config.log_scale_bound is None


def test_far_from_the_data_a_bounded_model_has_a_density_and_a_way_back() -> None:
    """Noise of σ = 5, of which an unbounded model of the digits made NaN."""
    torch.manual_seed(0)
    shape = dict(image_size=8, channels=1, patch_size=2, width=64, layers=(1, 1, 1, 1), num_classes=3)
    flow = TarFlow(TarFlowConfig(**shape))
    with torch.no_grad():
        for block in flow.blocks:
            torch.nn.init.normal_(block.proj_out.weight, std=0.3)
    x = (5 * torch.randn(200, 1, 8, 8)).requires_grad_()
    log_prob = flow.log_prob(x)
    log_prob.sum().backward()
    assert log_prob.isfinite().all() and x.grad is not None
    assert x.grad.isfinite().all() and (x.grad.flatten(1) != 0).any(dim=1).all()
