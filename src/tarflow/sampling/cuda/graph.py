"""Decoding on a GPU by CUDA graphs: a step of the sequential solver, or a window of Jacobi iteration, is replayed.

A step is some seventy small kernels, and launching them one by one takes longer than running them. A graph launches all
of them at once, but its shapes are fixed: the position is a tensor on the device that the step itself moves on. Nothing
is allocated in the loop, and the host waits for nothing. A window of few patches is as short of work, and comes back as
often as Jacobi iteration needs; there the solver waits, to ask what has settled.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tarflow.model.block import Block
from tarflow.model.cache import KVCache
from tarflow.model.condition import Value
from tarflow.model.context import Context
from tarflow.sampling.cuda.step import ALIGNED, DeviceStep
from tarflow.sampling.guidance import Guidance, branches, guided_rows, inverse_of, predictor_of, side_by_side
from tarflow.sampling.solver import Predict, Solution

Launch = Callable[[], None]
Capture = Callable[[Launch], Launch]
"""capture(launch): do it once, and return what repeats it."""

WINDOW_TOKENS = 1 << 13  # that a GPU evaluates faster than the host launches them: then windows are captured, too


@dataclass
class _Recorded:
    """What one block's steps were captured with."""

    step: DeviceStep
    replays: list[tuple[int, Launch]] = field(default_factory=list)  # of each stretch: how often, and what to call


@dataclass
class _Windows:
    """What the windows of one block were captured with, for one size of batches; the context is written to."""

    x: Tensor  # (B, T-1, D)
    params: Tensor  # (B, T-1, k·D)
    context: Context | None
    temperature: Tensor | None
    cache: KVCache
    replays: dict[tuple[int, int], Launch] = field(default_factory=dict)  # by the first patch and the end


class Captured:
    """What a GPU has recorded of one flow: `solve` is the sequential solver, `predictor` is for windows.

    All blocks share the memory that they are captured with: the cache of the largest, a batch of patches, and a pool
    for what is in between. A smaller batch is filled up. Everything is freed with this object.

    Args:
        capture: makes a step into something that repeats it; None is `cuda_graphs` of the device of the first batch.

    Attributes:
        seconds: how long capturing has taken so far, which no later batch of the same size spends again.
    """

    def __init__(self, capture: Capture | None = None) -> None:
        self.capture = capture
        self.seconds = 0.0
        self._forget(0)

    def _forget(self, batch: int) -> None:
        self.batch = batch
        self.recorded: dict[tuple[Block, Guidance | None], _Recorded] = {}
        self.windows: dict[tuple[Block, Guidance | None, int], _Windows] = {}
        self.patches: Tensor | None = None  # (batch, T, D), z before the place and x from there on
        self.stores: dict[tuple[int, torch.dtype], Tensor] = {}  # the memory of caches, by rows and dtype

    @torch.no_grad()
    def solve(self, block: Block, z: Tensor, y: Value, guidance: Guidance | None) -> Solution:
        """Solve x_i = transform.inverse(z_i, params_i(x_<i)) patch by patch.

        Args:
            z: (B, T, D), in the block's own order, on the block's device. Not written to. y: (B,) checked labels.

        Returns:
            x (B, T, D) in the block's own order, after T-1 iterations, with no residual.
        """
        batch, length = z.shape[:2]
        if batch > self.batch:
            self._forget(batch)
        with _on(z.device):
            if self.patches is None:
                self.patches = torch.empty(self.batch, *z.shape[1:], dtype=z.dtype, device=z.device)
                self.place = torch.zeros(1, dtype=torch.int64, device=z.device)  # of the patch decoded last
            self.patches[:batch].copy_(z)
            self.patches[batch:].copy_(z[-1:])
            self.place.zero_()
            if batch < self.batch:
                rows = torch.arange(self.batch, device=z.device, dtype=torch.int64).clamp(max=batch - 1)
                y = block.conditions.rows(y, rows)
            context, temperature = branches(block, y, guidance, self.batch)
            recorded = self.recorded.get((block, guidance))
            if recorded is None:
                recorded = _Recorded(DeviceStep(block, context, self._store(block, guidance), temperature))
                recorded.step.begin(context)
                self._record(block, guidance, recorded, length - 1)
                self.recorded[block, guidance] = recorded
            else:
                recorded.step.begin(context)
                for count, replay in recorded.replays:
                    for _ in range(count):
                        replay()
            return Solution(self.patches[:batch].clone(), length - 1, 0.0)

    def predictor(self, block: Block, y: Value, guidance: Guidance | None, batch: int) -> Predict:
        """`guidance.predictor` of a batch, each window of which is captured when it is evaluated for the first time.

        What it returns lasts until it is called again. Worth it for few tokens, and where windows come back.
        """
        if batch > self.batch:
            self._forget(batch)
        rows = guided_rows(guidance, batch)
        key = (block, guidance, batch)
        if key not in self.windows:
            length, size = block.config.slots - 1, block.config.dim
            dtype = block.state_dtype
            x = torch.empty(batch, length, size, dtype=dtype, device=block.position.device)
            params = x.new_empty(batch, length, inverse_of(block, guidance).size)
            context, temperature = branches(block, y, guidance, batch)
            self.windows[key] = _Windows(x, params, context, temperature, block.new_cache(rows))
        windows = self.windows[key]
        if windows.context is not None:
            context, _ = branches(block, y, guidance, batch)
            assert context is not None
            windows.context.copy_(context)

        def conditioner(x: Tensor, start: int) -> Tensor:
            return block.conditioner(x, windows.context, start, windows.cache, windows.temperature)

        predict = predictor_of(block, conditioner, guidance)

        def evaluate(x: Tensor, start: int) -> Tensor:
            end = start + x.shape[1]
            place = (slice(None), slice(start, end))

            def step() -> None:
                windows.params[place] = predict(windows.x[place], start)

            with _on(x.device):
                windows.x[place] = x
                replay = windows.replays.get((start, end))
                if replay is None:
                    windows.replays[start, end] = self._captured(step, x.device)
                else:
                    replay()
            return windows.params[place]

        return Predict(evaluate, predict.transform)

    def _captured(self, step: Launch, device: torch.device) -> Launch:
        """Take a step, and capture it."""
        if self.capture is None:
            self.capture = cuda_graphs(device)
        started = time.perf_counter()
        replay = self.capture(step)
        self.seconds += time.perf_counter() - started
        return replay

    def _record(self, block: Block, guidance: Guidance | None, recorded: _Recorded, last: int) -> None:
        """Decode the batch, capturing the first step of each stretch."""
        for count, room in recorded.step.stretches(last):
            step = functools.partial(self._step, block, functools.partial(recorded.step, room=room), guidance)
            replay = self._captured(step, block.position.device)
            recorded.replays.append((count, replay))
            for _ in range(count - 1):
                replay()

    def _step(self, block: Block, conditioner: Callable[[Tensor, Tensor], Tensor], guidance: Guidance | None) -> None:
        """x_{i+1} = inverse(z_{i+1}, params_{i+1}) and i ← i+1, all of it on the device."""
        assert self.patches is not None
        following = self.place + 1
        known = self.patches.index_select(1, self.place)
        known = known if guided_rows(guidance, 1) == 1 else torch.cat([known, known])
        params = side_by_side(block, conditioner(known, self.place), guidance, following)
        fresh = inverse_of(block, guidance).inverse(self.patches.index_select(1, following), params)
        self.patches.index_copy_(1, following, fresh)
        self.place.copy_(following)

    def _store(self, block: Block, guidance: Guidance | None) -> Tensor:
        """A cache for the block, in memory that all of its size share: they are decoded one after the other."""
        rows = guided_rows(guidance, self.batch)
        config = block.config
        places = block.conditions.places + max(1, config.slots - 1)
        heads, length = config.width // config.head_dim, -(-places // ALIGNED) * ALIGNED
        shape = (len(block.layers), 2, rows, heads, length, config.head_dim)
        key = (rows, block.product_dtype)
        size = len(block.layers) * 2 * rows * heads * length * config.head_dim
        have = self.stores.get(key)
        if have is None or have.numel() < size:
            have = self.stores[key] = torch.empty(size, dtype=block.product_dtype, device=block.position.device)
        return have[:size].view(shape)


@dataclass(frozen=True)
class BlockReplay:
    """`Captured` for a batch of one block: the `Replay` of `sampling.solver`."""

    captured: Captured
    block: Block
    y: Value
    guidance: Guidance | None
    batch: int

    @property
    def seconds(self) -> float:
        return self.captured.seconds

    def steps(self, z: Tensor) -> Tensor:
        return self.captured.solve(self.block, z, self.y, self.guidance).x

    def windows(self) -> Callable[[Tensor, int], Tensor] | None:
        slots = self.block.conditions.places + self.block.config.slots
        if guided_rows(self.guidance, self.batch) * slots > WINDOW_TOKENS:
            return None
        return self.captured.predictor(self.block, self.y, self.guidance, self.batch)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Where graphs are captured and replayed: on the device of the flow, whichever is the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def cuda_graphs(device: torch.device) -> Capture:
    """A `capture` that records CUDA graphs, all of them in one pool of memory, on a stream of their own.

    The step is taken once on that stream before it is recorded: libraries then have what they keep for a stream, and
    nothing of it comes to lie in the pool. Only this thread must not do what would spoil a capture: another one may be
    pinning memory for the training meanwhile.
    """
    pool, side = torch.cuda.graph_pool_handle(), _side_stream(device)
    graphs = []  # none is freed before the last one is captured: a pool must be in use while it is shared

    def capture(step: Launch) -> Launch:
        graph = torch.cuda.CUDAGraph()
        graphs.append(graph)
        current = torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            step()
            with _recording(graph, pool):
                step()  # recorded, not run
        current.wait_stream(side)
        return graph.replay

    return capture


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that captures are made on, one a device: cuBLAS keeps 32 MB for each that it has seen."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def _recording(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """As `torch.cuda.graph`, which collects garbage and empties the cache of the allocator before every capture."""
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        yield
    except BaseException:
        with contextlib.suppress(RuntimeError):  # a capture that failed cannot be ended in order, but must be ended
            graph.capture_end()
        raise
    graph.capture_end()
