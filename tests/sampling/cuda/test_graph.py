"""The sequential solver of a GPU, here with steps that are repeated instead of replayed: what it computes and keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from flow_cases import assert_close, build, labels, latents, names, randomise, repeated, unchanged
from tarflow import Guidance, TarFlow, TarFlowConfig
from tarflow.model.block import Block
from tarflow.sampling import decode as decode_module
from tarflow.sampling.cuda import graph as graph_module
from tarflow.sampling.cuda.graph import Captured
from tarflow.sampling.cuda.step import ALIGNED, DeviceStep
from tarflow.sampling.decode import invert
from tarflow.sampling.guidance import guided_rows, predictor
from tarflow.sampling.jacobi import Jacobi, jacobi
from tarflow.sampling.sequential import Sequential, sequential
from tarflow.sampling.solver import Solution

LONG = TarFlowConfig(8, channels=1, patch_size=1, width=16, head_dim=8, layers=(2, 1), num_classes=3)  # T=64
GUIDANCES = [None, Guidance(0.0), Guidance(2.0), Guidance(1.0, "constant", 0.5, "stable")]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def long_flow() -> TarFlow:
    """A flow in which what 64 patches owe to each other does not overflow."""
    flow = randomise(TarFlow(LONG).double())
    for block in flow.blocks:
        block.proj_out.weight.mul_(0.3)
    return flow


def exact(block: Block, z: Any, y: Any, guidance: Guidance | None = None) -> Solution:
    return sequential(predictor(block, y, guidance, block.new_cache(guided_rows(guidance, len(z)))), z)


class Counting:
    """A capture that counts: how many there were, and how often each of them was repeated."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, step: Callable[[], None]) -> Callable[[], None]:
        step()
        self.replays.append(0)
        number = len(self.replays) - 1

        def replay() -> None:
            self.replays[number] += 1
            step()

        return replay


@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
def test_it_is_the_sequential_solver(guidance: Guidance | None) -> None:
    flow, counting = long_flow(), Counting()
    captured, y = Captured(counting), labels(flow, 3)
    for block in flow.blocks:
        z = latents(flow, 3)
        with unchanged(z, *block.parameters()):
            found = captured.solve(block, z, y, guidance)
        want = exact(block, z, y, guidance)
        assert_close(found.x, want.x, 1e-11)
        assert found.iterations == want.iterations == 63 and found.residual == 0
    assert counting.replays == [31, 30] * 2  # two stretches a block, of which the first step is the one captured


@pytest.mark.parametrize("name", names(sequences=True))
@pytest.mark.parametrize("guided", [False, True])
def test_it_takes_every_kind_of_flow(name: str, guided: bool) -> None:
    flow = build(name)
    y = labels(flow, 2)
    guidance = Guidance(1.5, temperature=0.7) if guided else None
    captured = Captured(repeated)
    for block in flow.blocks:
        z = latents(flow, 2)
        assert DeviceStep.fits(block)
        assert_close(captured.solve(block, z, y, guidance).x, exact(block, z, y, guidance).x, 1e-11)


@pytest.mark.parametrize("guidance", GUIDANCES[2:], ids=str)
def test_what_was_captured_serves_later_batches_of_other_labels_and_sizes(guidance: Guidance) -> None:
    flow, counting = long_flow(), Counting()
    captured = Captured(counting)
    for count, seed in ((4, 0), (4, 1), (1, 2), (3, 3)):
        z, y = latents(flow, count, seed), (torch.arange(count) + seed) % 3
        for block in flow.blocks:
            assert_close(captured.solve(block, z, y, guidance).x, exact(block, z, y, guidance).x, 1e-11)
    assert len(counting.replays) == 4, "a later batch was captured again"
    z, y = latents(flow, 5), labels(flow, 5)  # more than there is room for
    assert_close(captured.solve(flow.blocks[0], z, y, guidance).x, exact(flow.blocks[0], z, y, guidance).x, 1e-11)
    assert len(counting.replays) == 6


def test_guidances_are_kept_apart_and_blocks_share_their_memory() -> None:
    flow = long_flow()
    captured, y, z = Captured(repeated), labels(flow, 3), latents(flow, 3)
    for _ in range(2):
        for guidance in GUIDANCES:
            for block in flow.blocks:
                assert_close(captured.solve(block, z, y, guidance).x, exact(block, z, y, guidance).x, 1e-11)
    shapes = {store.numel() for store in captured.stores.values()}
    assert shapes == {rows * 2 * 2 * 16 * 64 for rows in (3, 6)}  # the deeper block's, once for each number of rows


def test_no_step_looks_further_than_its_stretch() -> None:
    """What lies behind it in the cache may be anything, even what no mask can hide."""
    flow = long_flow()
    block, z = flow.blocks[0], latents(flow, 2)
    captured = Captured(repeated)
    want = captured.solve(block, z, None, None).x
    (store,) = captured.stores.values()
    store.view(2, 2, 2, 2, 64, 8)[..., 2 * ALIGNED :, :] = float("nan")
    step = captured.recorded[block, None]
    captured.patches[:] = z
    captured.place.zero_()
    count, replay = step.replays[0]
    for _ in range(count):
        replay()
    assert_close(captured.patches[:, : count + 1], want[:, : count + 1], 1e-11)


def test_a_capture_that_fails_is_made_again() -> None:
    flow, fails = long_flow(), [False, True]

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        if fails and fails.pop(0):
            raise RuntimeError("out of memory")
        return repeated(step)

    captured, z, y = Captured(capture), latents(flow, 2), labels(flow, 2)
    with pytest.raises(RuntimeError, match="out of memory"):
        captured.solve(flow.blocks[0], z, y, None)
    for _ in range(2):
        assert_close(captured.solve(flow.blocks[0], z, y, None).x, exact(flow.blocks[0], z, y).x, 1e-11)


def test_it_stands_back_from_autocast_gradients_and_what_it_does_not_know() -> None:
    block = build("conditional", torch.float32).blocks[0]
    assert DeviceStep.fits(block)
    with torch.autocast("cpu", torch.bfloat16):
        assert not DeviceStep.fits(block)
    with torch.enable_grad():
        assert not DeviceStep.fits(block)
    block.layers[0].register_forward_hook(lambda module, args, out: out + 1)
    assert not DeviceStep.fits(block)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_state_is_wider_than_narrow_weights(dtype: torch.dtype) -> None:
    flow = long_flow().to(dtype)
    z = latents(flow, 2, dtype=torch.float32)
    found = Captured(repeated).solve(flow.blocks[0], z, labels(flow, 2), None).x
    assert found.dtype == torch.float32
    assert_close(found, exact(flow.blocks[0], z, labels(flow, 2)).x, 1e-4 if dtype == torch.float32 else 0.3)


def test_a_batch_that_overflowed_leaves_nothing_to_the_next() -> None:
    flow, captured, y = long_flow(), Captured(repeated), None
    block = flow.blocks[0]
    assert not captured.solve(block, latents(flow, 2) * float("inf"), y, None).x.isfinite().all()
    assert_close(captured.solve(block, latents(flow, 2), y, None).x, exact(block, latents(flow, 2), y).x, 1e-11)


@pytest.mark.parametrize("guidance", GUIDANCES[1:], ids=str)
def test_windows_are_captured_once_and_serve_later_batches(guidance: Guidance) -> None:
    flow, counting = long_flow(), Counting()
    captured = Captured(counting)
    for seed in range(3):
        z, y = latents(flow, 2, seed), (torch.arange(2) + seed) % 3
        for block in flow.blocks:
            predict = captured.predictor(block, y, guidance, 2)
            found = jacobi(predict, z, tol=1e-12, shapes=2)
            assert_close(found.x, exact(block, z, y, guidance).x, 1e-9)
            assert found.iterations > 4
    assert len(counting.replays) <= 4 < max(counting.replays)  # two shapes of each of two blocks at most


def test_a_gpu_captures_windows_of_few_tokens_and_the_steps_of_the_sequential_solver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flow, y, z = long_flow(), torch.arange(2), latents(long_flow(), 2)
    counting = Counting()
    monkeypatch.setattr(decode_module, "_on_gpu", lambda block, z: True)
    for solve, captures in ((Sequential(), 2), (Jacobi(tol=1e-12), 1), (Jacobi(window=16, tol=1e-12), 4)):
        captured = Captured(counting)
        counting.replays.clear()
        found = invert(flow.blocks[0], z, y, Guidance(1.0), solve, None, captured)
        assert_close(found.x, exact(flow.blocks[0], z, y, Guidance(1.0)).x, 1e-9)
        assert len(counting.replays) == captures
    monkeypatch.setattr(graph_module, "WINDOW_TOKENS", 10)
    counting.replays.clear()
    invert(flow.blocks[0], z, y, None, Jacobi(), None, Captured(counting))
    assert not counting.replays
