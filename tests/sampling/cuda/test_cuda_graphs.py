"""What is asked of CUDA while steps are captured: on which device and stream, in which pool, and what is kept alive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from flow_cases import build, images, labels, latents
from tarflow.sampling import denoise as denoise_module
from tarflow.sampling.cuda import graph as captured_module
from tarflow.sampling.cuda.graph import Captured, cuda_graphs

DEVICE = torch.device("cuda", 1)


class Cuda:
    """A `torch.cuda` that writes down what it is told; its graphs remember what they recorded, and run it again."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.current: Any = "main"
        self.recording: Any = None
        self.alive = 0

        class Graph:
            def __init__(graph) -> None:
                self.alive += 1

            def __del__(graph) -> None:
                self.alive -= 1
                self.said.append("freed")

            def capture_begin(graph, *, pool: Any, capture_error_mode: str) -> None:
                assert self.current == "side", "captured on the stream of the caller"
                self.said.append(("begin", pool, capture_error_mode))
                self.recording = graph

            def capture_end(graph) -> None:
                assert self.recording is graph
                self.said.append("end")
                self.recording = None

            def replay(graph) -> None:
                self.said.append("replay")

        class Stream:
            def __init__(stream, device: Any) -> None:
                self.said.append(("stream", device))

            def wait_stream(stream, other: Any) -> None:
                self.said.append(("side waits for", other))

        class Main:
            def wait_stream(stream, other: Any) -> None:
                self.said.append("main waits")

        self.CUDAGraph, self.Stream, self.main = Graph, Stream, Main()

    def current_stream(self, device: Any) -> Any:
        self.said.append(("current stream of", device))
        return self.main

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current, before = "side", self.current
        yield
        self.current = before


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    fake = Cuda()
    for name in ("CUDAGraph", "Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name), raising=False)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    captured_module._side_stream.cache_clear()
    yield fake
    captured_module._side_stream.cache_clear()


def test_a_step_is_taken_on_the_stream_that_it_is_captured_on_and_only_then_recorded(cuda: Cuda) -> None:
    """Else what cuBLAS keeps for a stream is allocated in the pool, and keeps it from being shared."""
    taken: list[Any] = []
    capture = cuda_graphs(DEVICE)
    replay = capture(lambda: taken.append((cuda.current, cuda.recording is not None)))
    assert taken == [("side", False), ("side", True)]
    assert ("begin", "pool", "thread_local") in cuda.said, "another thread may be pinning memory"
    order = [said for said in cuda.said if said in ("main waits", "end") or "side waits for" in said]
    assert order == [("side waits for", cuda.main), "end", "main waits"]
    assert ("stream", DEVICE) in cuda.said and ("current stream of", DEVICE) in cuda.said
    replay()
    assert cuda.said[-1] == "replay" and len(taken) == 2


def test_no_graph_is_freed_while_others_are_captured_and_all_of_them_with_the_last_replay(cuda: Cuda) -> None:
    """In torch 2.11 and before, a capture asserts where its pool was given up by the graph before it."""
    capture = cuda_graphs(DEVICE)
    replays = [capture(lambda: None) for _ in range(3)]
    del replays[:2]
    assert cuda.alive == 3 and "freed" not in cuda.said
    assert [said[1] for said in cuda.said if said[0] == "begin"] == ["pool"] * 3
    assert cuda.said.count(("stream", DEVICE)) == 1
    del capture, replays
    assert cuda.alive == 0
    cuda_graphs(DEVICE)
    assert cuda.said.count(("stream", DEVICE)) == 1, "cuBLAS keeps 32 MB for each stream that it has seen"


def test_a_capture_that_fails_is_ended_and_says_why(cuda: Cuda) -> None:
    def step() -> None:
        if cuda.recording:
            raise ValueError("what a capture forbids")

    with pytest.raises(ValueError, match="what a capture forbids"):
        cuda_graphs(DEVICE)(step)
    assert "end" in cuda.said and cuda.recording is None


def test_everything_happens_on_the_device_of_the_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """With device 0 the current one, a flow on `cuda:1` was captured on the other's stream: empty graphs, garbage."""
    entered: list[Any] = []

    @contextlib.contextmanager
    def device(where: Any) -> Iterator[None]:
        entered.append(where)
        yield
        entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", device)
    with captured_module._on(DEVICE):
        assert entered == [DEVICE]
    assert entered == [DEVICE, "left"]
    with captured_module._on(torch.device("cpu")):
        assert len(entered) == 2
    monkeypatch.setattr(captured_module, "_on", device)
    flow = build("conditional", torch.float32)
    z, y = latents(flow, 2, dtype=torch.float32), labels(flow, 2)
    entered.clear()

    def capture(step: Any) -> Any:
        assert entered[-1] == torch.device("cpu"), "captured on whichever device is the current one"
        step()
        return step

    captured = Captured(capture)
    with torch.no_grad():
        captured.solve(flow.blocks[0], z, y, None)
        captured.predictor(flow.blocks[0], y, None, 2)(z[:, :-1], 0)
    assert entered == [torch.device("cpu"), "left"] * 2


def test_denoising_takes_as_many_images_as_half_of_a_gpu_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed gigabyte was two images of the paper's model at a time."""
    flow = build("conditional", torch.float32)
    sizes: list[int] = []
    real = denoise_module._denoise_chunk
    monkeypatch.setattr(denoise_module, "_denoise_chunk", lambda *a: sizes.append(len(a[1])) or real(*a))
    one = denoise_module.graph_bytes(flow)
    monkeypatch.setattr(denoise_module, "GRAPH_BYTES", 2 * one)
    for free, expected in ((None, [2, 2, 2, 1]), (3 * one, [2, 2, 2, 1]), (10 * one, [5, 2])):
        sizes.clear()
        monkeypatch.setattr(denoise_module, "free_bytes", lambda device, free=free: free)
        denoise_module.denoise(flow, images(flow, 7, dtype=torch.float32), 0.1)
        assert sizes == expected
