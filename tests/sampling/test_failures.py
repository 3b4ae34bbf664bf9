"""Samples that fail, and what sampling leaves behind: images drawn again alone, errors, a model as it was found."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import tarflow
from flow_cases import assert_close, build, labels, latents, row_of, unchanged
from tarflow import Guidance, SamplingError, TarFlow
from tarflow.model.block import Block
from tarflow.model.cache import KVCache
from tarflow.sampling.cpu.step import HostStep
from tarflow.sampling.decode import draw_noise
from tarflow.sampling.sample import MAX_ATTEMPTS

GUIDANCE = Guidance(scale=1.0, temperature=0.5)


# --- samples that are not finite -------------------------------------------------------------------------------------


def fail_for(monkeypatch: pytest.MonkeyPatch, flow: TarFlow, failing: list[tuple[int, int]], seed: int) -> list[int]:
    """Make the conditioner return NaN for (image, attempt); returns a list that grows by the rows of each decoding."""
    last, honest = flow.blocks[-1], Block.conditioner
    bad = torch.cat([draw_noise(flow, torch.tensor([k]), seed, attempt) for k, attempt in failing])
    bad = last.order.forward(flow.base.sample(bad))[:, 0]  # x_0 = z_0 is what the first step of the first block sees
    decodings: list[int] = []

    def conditioner(block: Block, x: Tensor, context: Any, start: Any = 0, *rest: Any) -> Tensor:
        params = honest(block, x, context, start, *rest)
        if block is last and start == 0:
            decodings.append(len(x))
            hit = (x[:, :1] - bad.to(x.dtype)).abs().amax(dim=2).min(dim=1).values < 1e-9
            params = torch.where(hit.view(-1, 1, 1), math.nan, params)
        return params

    monkeypatch.setattr(Block, "conditioner", conditioner)
    return decodings


@pytest.fixture
def no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The conditioner is asked itself, and not what stands in for it on a CPU."""
    monkeypatch.setattr(HostStep, "fits", lambda *_: False)


@pytest.mark.usefixtures("no_step")
@pytest.mark.parametrize("name", ["conditional", "additive", "one_block"])
def test_a_sample_that_is_not_finite_is_drawn_again_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flow, seed = build(name), 4
    y = labels(flow, 6)
    calm = list(tarflow.sample_batches(flow, 6, y, seed=seed, batch_size=3, solver="sequential"))
    again = {k: draw_noise(flow, torch.tensor([k]), seed, attempt) for k, attempt in ((1, 1), (4, 2))}
    with monkeypatch.context() as patch:
        decodings = fail_for(patch, flow, [(1, 0), (4, 0), (4, 1)], seed)
        batches = list(tarflow.sample_batches(flow, 6, y, seed=seed, batch_size=3, solver="sequential"))
    assert decodings == [3, 1, 3, 1, 1]
    assert torch.cat([b.redraws for b in batches]).tolist() == [0, 1, 0, 0, 2, 0]
    assert [b.redraws.tolist() for b in calm] == [[0, 0, 0], [0, 0, 0]]
    got, before = torch.cat([b.images for b in batches]), torch.cat([b.images for b in calm])
    assert torch.equal(got[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    for k, noise in again.items():
        want = tarflow.sample(flow, 1, row_of(y, k), noise=noise, solver="sequential")
        assert_close(got[k : k + 1], want)


@pytest.mark.usefixtures("no_step")
def test_what_a_redraw_takes_is_counted_and_its_progress_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    flow, told = build("unequal_depths"), []
    fail_for(monkeypatch, flow, [(1, 0), (3, 0), (3, 1)], seed=0)
    batches = list(
        tarflow.sample_batches(
            flow, 4, batch_size=2, solver="sequential", progress=lambda done, total: told.append((done, total))
        )
    )
    steps = flow.config.num_patches - 1
    assert [batch.iterations for batch in batches] == [(2 * steps,) * 3, (3 * steps,) * 3]
    total = 4 * 3 * flow.config.num_patches
    assert told == sorted(told) and told[-1] == (total, total) and told.count((total, total)) == 1
    assert len(told) == 2 * 3 * (steps + 1)


@pytest.mark.usefixtures("no_step")
def test_a_sample_that_never_is_finite_ends_in_an_error_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional")
    decodings = fail_for(monkeypatch, flow, [(2, attempt) for attempt in range(50)], seed=0)
    with pytest.raises(SamplingError, match="sample 2") as caught:
        tarflow.sample(flow, 4, labels(flow, 4), solver="sequential")
    assert decodings == [4] + [1] * (MAX_ATTEMPTS - 1) and "\n" not in str(caught.value)
    batches = tarflow.sample_batches(flow, 4, labels(flow, 4), batch_size=2, solver="sequential")
    assert next(batches).indices.tolist() == [0, 1]  # what was finished before is not lost
    with pytest.raises(SamplingError, match="1 of 2 samples"):
        next(batches)


@pytest.mark.usefixtures("no_step")
def test_noise_of_the_caller_is_never_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    flow = build("conditional")
    noise = draw_noise(flow, torch.arange(4), seed=0)
    decodings = fail_for(monkeypatch, flow, [(2, 0)], seed=0)
    with pytest.raises(SamplingError, match="sample 2"), unchanged(noise):
        tarflow.sample(flow, 4, labels(flow, 4), noise=noise, solver="sequential")
    assert decodings == [4]


def test_an_overflow_is_such_a_failure() -> None:
    flow = build("unconditional", torch.float32)
    flow.blocks[0].proj_out.bias.data[: flow.config.patch_dim] = 1e3  # exp(1000) is inf
    with pytest.raises(SamplingError, match="not finite"):
        tarflow.sample(flow, 2)


# --- what is left behind ---------------------------------------------------------------------------------------------


def snapshot(flow: TarFlow) -> list[Any]:
    """Everything about a model that sampling might change."""
    tensors = [*flow.parameters(), *flow.buffers()]
    return [
        [(id(t), t._version, t.requires_grad, t.grad is None, t.detach().numpy().tobytes()) for t in tensors],
        [(id(m), m.training, sorted(vars(m)), list(m._buffers), list(m._parameters)) for m in flow.modules()],
        [[len(v) for k, v in sorted(vars(m).items()) if k.endswith("hooks")] for m in flow.modules()],
        list(flow.state_dict()),
    ]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["conditional", "additive"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was_found(
    name: str, training: bool, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = build(name).train(training)
    flow.blocks[0].position.requires_grad_(False)
    noise, y = latents(flow, 5), labels(flow, 5)
    before, random, calls = snapshot(flow), torch.get_rng_state(), []

    def failing(honest: Callable[..., Any]) -> Callable[..., Any]:
        def conditioner(*args: Any, **kwargs: Any) -> Tensor:
            calls.append(1)
            if fails and len(calls) == 5:
                raise KeyboardInterrupt
            return honest(*args, **kwargs)

        return conditioner

    monkeypatch.setattr(Block, "conditioner", failing(Block.conditioner))
    monkeypatch.setattr(HostStep, "__call__", failing(HostStep.__call__))
    with unchanged(noise, y):
        if fails:
            with pytest.raises(KeyboardInterrupt):
                tarflow.sample(flow, 5, y, GUIDANCE, denoise=0.1, noise=noise)
        else:
            tarflow.sample(flow, 5, y, GUIDANCE, denoise=0.1, noise=noise)
            tarflow.sample(flow, 5, y, seed=1)
    assert snapshot(flow) == before and torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random), "the global generator was used"
    gc.collect()
    assert not [o for o in gc.get_objects() if type(o) is KVCache], "a cache outlives its sampler"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_any_gradient_mode(mode: type) -> None:
    flow = build("conditional")
    want = tarflow.sample(flow, 3, labels(flow, 3), GUIDANCE, denoise=0.1)
    with mode():
        got = tarflow.sample(flow, 3, labels(flow, 3), GUIDANCE, denoise=0.1, batch_size=2)
    assert_close(got.clone(), want)


def test_two_samplers_may_take_turns_on_one_model() -> None:
    flow = build("conditional")
    calls = [{"y": labels(flow, 6), "guidance": GUIDANCE, "seed": 1}, {"y": None, "guidance": None, "seed": 2}]
    alone = [tarflow.sample(flow, 6, batch_size=2, **call) for call in calls]
    turns = zip(*(tarflow.sample_batches(flow, 6, batch_size=2, **call) for call in calls), strict=True)
    for got, want in zip(zip(*turns, strict=True), alone, strict=True):
        assert torch.equal(torch.cat([b.images for b in got]), want)


def test_two_threads_may_sample_from_one_model() -> None:
    flow = build("conditional")
    calls = [{"y": labels(flow, 6), "guidance": GUIDANCE, "seed": 1}, {"y": None, "guidance": None, "seed": 2}] * 2
    alone = [tarflow.sample(flow, 6, batch_size=2, denoise=0.1, **call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(tarflow.sample, flow, 6, batch_size=2, denoise=0.1, **call) for call in calls]
        for future, want in zip(futures, alone, strict=True):
            assert_close(future.result(), want)
