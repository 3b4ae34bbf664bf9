"""The trace of a sample: it ends where `sample` ends, and every stage follows from the one before by one block."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import tarflow
from flow_cases import assert_close, build, every_kind, labels, latents, names, unchanged
from tarflow import Guidance, SamplingError

GUIDANCE = Guidance(scale=1.0, temperature=0.5)


@every_kind
def test_it_goes_from_noise_to_sample_one_block_at_a_time(name: str) -> None:
    flow = build(name)
    noise, y = latents(flow, 3), labels(flow, 3)
    with unchanged(noise, y):
        stages = tarflow.trace(flow, 3, y, noise=noise)
    assert len(stages) == len(flow.blocks) + 1
    assert_close(stages[0], flow.event.from_tokens(flow.base.sample(noise)))
    assert torch.equal(stages[-1], tarflow.sample(flow, 3, y, noise=noise))
    for block, before, after in zip(reversed(flow.blocks), stages, stages[1:], strict=False):
        z, _ = block.encode(flow.event.to_tokens(after)[0], y)
        assert_close(z, flow.event.to_tokens(before)[0])
        assert not after.requires_grad


@every_kind
def test_it_is_the_trace_of_that_seed(name: str) -> None:
    flow = build(name)
    y = labels(flow, 2)
    assert torch.equal(tarflow.trace(flow, 2, y, seed=7)[-1], tarflow.sample(flow, 2, y, seed=7))
    assert not torch.equal(tarflow.trace(flow, 2, y, seed=7)[0], tarflow.trace(flow, 2, y, seed=8)[0])


@pytest.mark.parametrize("name", [n for n in names(sequences=True, long=True) if n != "additive"])
def test_guidance_and_denoising_are_those_of_sample(name: str) -> None:
    flow = build(name)
    y = labels(flow, 3)
    stages = tarflow.trace(flow, 3, y, GUIDANCE, seed=2, denoise=0.2)
    assert len(stages) == len(flow.blocks) + 2
    assert torch.equal(stages[-2], tarflow.sample(flow, 3, y, GUIDANCE, seed=2))
    assert torch.equal(stages[-1], tarflow.sample(flow, 3, y, GUIDANCE, seed=2, denoise=0.2))
    plain = tarflow.trace(flow, 3, y, seed=2)
    assert torch.equal(stages[0], plain[0]) and not torch.allclose(stages[1], plain[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "^n: expected"),
        ({"n": 2, "y": torch.tensor([0])}, "^y: expected"),
        ({"n": 2, "noise": torch.zeros(3, 4, 4)}, "noise: expected 2"),
        ({"n": 2, "denoise": -0.1}, "^sigma: expected"),
        ({"n": 2, "guidance": Guidance()}, "both branches are the same"),
    ],
)
def test_arguments_are_held_to_account_as_by_sample(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tarflow.trace(build("conditional"), **arguments)


def test_a_trace_that_overflows_is_an_error() -> None:
    flow = build("unconditional")
    with torch.no_grad():
        flow.blocks[0].proj_out.bias[: flow.config.patch_dim] = math.inf
    with pytest.raises(SamplingError, match="sample 0 is not finite"):
        tarflow.trace(flow, 2)
